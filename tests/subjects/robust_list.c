/* Robust futexes: the kernel still knows which mutexes a thread holds, and releases them when it dies. */
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>

struct shared {
    pthread_mutex_t of_thread, of_process;
};
static struct shared *shared;
static volatile int locked;

static void *hold_and_die(void *unused) {
    (void)unused;
    must(-pthread_mutex_lock(&shared->of_thread));
    locked = 1;
    wait_go();
    if (sabotage()) pthread_mutex_unlock(&shared->of_thread);
    return NULL; /* without unlocking */
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    shared = must(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->of_thread, &attributes);
    pthread_mutex_init(&shared->of_process, &attributes);
    pthread_t thread;
    must(-pthread_create(&thread, NULL, hold_and_die, NULL));
    pid_t child = must(fork());
    if (child == 0) {
        must(-pthread_mutex_lock(&shared->of_process));
        mark("child");
        await_mark("never");
    }
    await_mark("child");
    while (!locked) sleep_ms(1);
    void *head_before, *head_after;
    size_t length;
    must(syscall(SYS_get_robust_list, 0, &head_before, &length));
    ready();
    wait_go();

    must(syscall(SYS_get_robust_list, 0, &head_after, &length));
    check(head_before == head_after, "the list's head moved from %p to %p", head_before, head_after);
    pthread_join(thread, NULL);
    check_equal(pthread_mutex_lock(&shared->of_thread), EOWNERDEAD);
    check_equal(pthread_mutex_consistent(&shared->of_thread), 0);
    check_equal(pthread_mutex_unlock(&shared->of_thread), 0);
    check_equal(pthread_mutex_trylock(&shared->of_process), EBUSY);
    must(kill(child, SIGKILL));
    must(waitpid(child, NULL, 0));
    check_equal(pthread_mutex_lock(&shared->of_process), EOWNERDEAD);
    return finish();
}
