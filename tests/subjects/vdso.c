/* The vdso: its functions go on working where they were found, and the clocks they give make sense. */
#include "subject.h"
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>

/* A symbol of the vdso, looked up the way a libc does. */
static void *symbol(const char *name) {
    char *base = (char *)getauxval(AT_SYSINFO_EHDR);
    if (!base) skip("no vdso");
    Elf64_Ehdr *header = (Elf64_Ehdr *)base;
    Elf64_Phdr *segments = (Elf64_Phdr *)(base + header->e_phoff);
    Elf64_Dyn *dynamic = NULL;
    char *load = NULL;
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD && !load) load = base + segments[i].p_offset - segments[i].p_vaddr;
        if (segments[i].p_type == PT_DYNAMIC) dynamic = (Elf64_Dyn *)(base + segments[i].p_offset);
    }
    Elf64_Sym *symbols = NULL;
    char *strings = NULL;
    for (; dynamic->d_tag; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB) symbols = (Elf64_Sym *)(load + dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_STRTAB) strings = load + dynamic->d_un.d_ptr;
    }
    /* The string table comes after the symbols. */
    for (Elf64_Sym *s = symbols; (char *)(s + 1) <= strings; s++)
        if (strcmp(strings + s->st_name, name) == 0) return load + s->st_value;
    return NULL;
}

static int (*vdso_clock_gettime)(clockid_t, struct timespec *);
static int (*vdso_getcpu)(unsigned *, unsigned *, void *);
static int nonsense(unsigned *cpu, unsigned *node, void *unused) { return (void)unused, *cpu = *node = 1u << 30, -1; }
static volatile int stop;
static volatile long calls;

/* Is inside the vdso most of the time, so that the checkpoint is likely to catch it there. */
static void *spin(void *unused) {
    (void)unused;
    struct timespec last = {0, 0}, time;
    while (!stop) {
        if (vdso_clock_gettime(CLOCK_MONOTONIC, &time) != 0) check(0, "clock_gettime failed");
        check(time.tv_sec > last.tv_sec || (time.tv_sec == last.tv_sec && time.tv_nsec >= last.tv_nsec), "time went back");
        last = time;
        calls++;
    }
    return NULL;
}

static double seconds(const struct timespec *time) { return (double)time->tv_sec + (double)time->tv_nsec * 1e-9; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    *(void **)&vdso_clock_gettime = symbol("__vdso_clock_gettime");
    *(void **)&vdso_getcpu = symbol("__vdso_getcpu");
    if (!vdso_clock_gettime || !vdso_getcpu) skip("the vdso lacks what is tested");
    pthread_t thread;
    must(-pthread_create(&thread, NULL, spin, NULL));
    while (calls < 1000) sleep_ms(1);
    ready();
    wait_go();

    long before = calls;
    sleep_ms(50);
    if (sabotage()) vdso_getcpu = nonsense;
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_COARSE,
                                       CLOCK_MONOTONIC_COARSE};
    for (size_t i = 0; i < COUNT(clocks); i++) {
        struct timespec fast, slow;
        int result = vdso_clock_gettime(clocks[i], &fast);
        must(syscall(SYS_clock_gettime, clocks[i], &slow));
        check_equal(result, 0);
        check(seconds(&slow) - seconds(&fast) > -1 && seconds(&slow) - seconds(&fast) < 30, "clock %d: %f by vdso, %f by call",
              (int)clocks[i], seconds(&fast), seconds(&slow));
    }
    unsigned cpu = 12345, node = 12345;
    check_equal(vdso_getcpu(&cpu, &node, NULL), 0);
    check(cpu < (unsigned)sysconf(_SC_NPROCESSORS_CONF), "getcpu says %u", cpu);
    for (int i = 0; i < 400 && calls == before; i++) sleep_ms(5);
    check(calls > before, "the thread inside the vdso stands still");
    stop = 1;
    pthread_join(thread, NULL);
    return finish();
}
