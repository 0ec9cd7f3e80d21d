/* Threads: thread-local storage, names, signal masks, kernel ids, and waits on a mutex and a condition variable. */
#include "subject.h"
#include <pthread.h>
#include <sys/prctl.h>

enum { THREADS = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;
static int may_go, waiting, passed_held;
static __thread long mine;
static __thread char text[32] = "initial";

static void *run(void *argument) {
    long number = (long)argument;
    char name[16], found[16] = "";
    snprintf(name, sizeof name, "worker-%ld", number);
    must(prctl(PR_SET_NAME, name));
    mine = number * 1000003;
    if (number % 2) snprintf(text, sizeof text, "thread %ld", number);
    sigset_t mask, now_mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + (int)number);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    pid_t id = thread_id();

    if (number % 2) { /* half of them wait for a mutex, half for a condition */
        __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_lock(&held);
        passed_held++;
        pthread_mutex_unlock(&held);
    } else {
        pthread_mutex_lock(&lock);
        __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
        while (!may_go) pthread_cond_wait(&released, &lock);
        pthread_mutex_unlock(&lock);
    }

    if (sabotage() && number == 3) prctl(PR_SET_NAME, "other");
    must(prctl(PR_GET_NAME, found));
    check(strcmp(found, name) == 0, "thread %ld is called %s", number, found);
    check_equal(mine, number * 1000003);
    check(strncmp(text, number % 2 ? "thread" : "initial", 6) == 0, "thread-local text is %s", text);
    pthread_sigmask(SIG_SETMASK, NULL, &now_mask);
    for (int signal = 1; signal <= SIGRTMAX; signal++)
        if (sigismember(&mask, signal) != sigismember(&now_mask, signal))
            check(0, "thread %ld: signal %d changed in the mask", number, signal);
    check_equal(thread_id(), id);
    return (void *)(number + 100);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[THREADS];
    pthread_mutex_lock(&held);
    for (long i = 0; i < THREADS; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (__atomic_load_n(&waiting, __ATOMIC_SEQ_CST) < THREADS) sleep_ms(1);
    sleep_ms(20);
    ready();
    wait_go();

    pthread_mutex_lock(&lock);
    may_go = 1;
    pthread_cond_broadcast(&released);
    pthread_mutex_unlock(&lock);
    check(passed_held == 0, "%d threads went past a mutex that is held", passed_held);
    pthread_mutex_unlock(&held);
    for (long i = 0; i < THREADS; i++) {
        void *result;
        check_equal(pthread_join(threads[i], &result), 0);
        check_equal((long)result, i + 100);
    }
    check_equal(passed_held, THREADS / 2);
    return finish();
}
