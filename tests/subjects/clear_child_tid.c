/* The address at which the kernel clears a thread's id when it ends: pthread_join depends on it. */
#include "subject.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>

static volatile int started;

static void *run(void *argument) {
    pid_t before = thread_id();
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    wait_go();
    check_equal(thread_id(), before);
    return argument;
}

/* A thread without libc: its end is only to be seen in the word that the kernel clears. */
static volatile pid_t word = -1;
static char raw_stack[65536];
static int raw(void *unused) {
    (void)unused;
    started++;
    wait_go();
    if (sabotage()) syscall(SYS_set_tid_address, NULL);
    return 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (started < 4) sleep_ms(1);
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;
    must(clone(raw, raw_stack + sizeof raw_stack, flags, NULL, NULL, NULL, &word));
    while (started < 5) sleep_ms(1);
    ready();
    wait_go();

    for (long i = 0; i < 4; i++) {
        void *result = NULL;
        check_equal(pthread_join(threads[i], &result), 0);
        check_equal((long)result, i);
    }
    for (int i = 0; i < 600 && word != 0; i++)
        syscall(SYS_futex, &word, FUTEX_WAIT, -1, &(struct timespec){0, 10000000}, NULL, 0);
    check_equal(word, 0);
    return finish();
}
