/* Restartable sequences: the area stays registered (the kernel keeps the CPU number in it current), and a critical
 * section that the checkpoint interrupts is aborted, as the kernel promises. */
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <stddef.h>

#ifndef SYS_rseq
#define SYS_rseq 334
#endif
#define SIGNATURE 0x53053053

struct area {
    uint32_t cpu_id_start, cpu_id;
    uint64_t critical_section;
    uint32_t flags, node_id, mm_cid;
} __attribute__((aligned(32)));

/* Where libc registered its own, if it did (glibc 2.35 and later). */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

static __thread struct area own;

static struct area *area(void) {
    if (&__rseq_offset && __rseq_size)
        return (struct area *)((char *)__builtin_thread_pointer() + __rseq_offset);
    if (own.cpu_id == 0 && own.flags == 0 && syscall(SYS_rseq, &own, 32, 0, SIGNATURE) != 0 && errno != EBUSY)
        skip("rseq: %s", strerror(errno));
    return &own;
}

static void follows_cpu(const char *who) {
    cpu_set_t before, one;
    must(sched_getaffinity(0, sizeof before, &before));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &before)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        must(sched_setaffinity(0, sizeof one, &one));
        uint32_t found = *(volatile uint32_t *)&area()->cpu_id;
        check((int)found == cpu, "%s: on CPU %d the area says %u", who, cpu, found);
    }
    must(sched_setaffinity(0, sizeof before, &before));
}

volatile uint64_t stop, inside;
static volatile int aborted = -1;

/* Loops inside a critical section until told to stop; 1 when it was aborted, which is where a preemption or a
 * checkpoint must take it. */
static int critical(struct area *rseq) {
    int result;
    __asm__ volatile(
        ".pushsection __rseq_cs, \"aw\"\n.balign 32\n"
        "3: .long 0, 0\n.quad 1f, 2f - 1f, 4f\n.popsection\n"
        "leaq 3b(%%rip), %%rax\nmovq %%rax, %[section]\n"
        "1: movq $1, inside(%%rip)\n"
        "5: movq stop(%%rip), %%rcx\njrcxz 5b\n"
        "2: xorl %[result], %[result]\njmp 6f\n"
        ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n"
        "4: movl $1, %[result]\n"
        "6:\n"
        : [section] "=m"(rseq->critical_section), [result] "=&r"(result)
        :
        : "rax", "rcx", "memory", "cc");
    return result;
}

static void *run(void *unused) {
    (void)unused;
    int times = 0;
    while (!stop) times += critical(area());
    aborted = times;
    follows_cpu("thread");
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    follows_cpu("main, before");
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!inside) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) must(syscall(SYS_rseq, area(), 32, 1, SIGNATURE)); /* unregisters */
    follows_cpu("main");
    stop = 1;
    pthread_join(thread, NULL);
    check(aborted >= 0, "the critical section was not left");
    return finish();
}
