/* Masks that the kernel holds for a while: threads inside ppoll, pselect, epoll_pwait and sigsuspend, with one mask
 * outside and another inside, and masks inside handlers. */
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum { KINDS = 5 };

static volatile int entered, handled[KINDS];
static __thread int my_kind;
static pthread_t threads[KINDS];

static void on_signal(int signal) {
    (void)signal;
    handled[my_kind]++;
}

static void on_long_signal(int signal) { /* stays in the handler over the checkpoint */
    sigset_t mask;
    (void)signal;
    entered++;
    wait_go();
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    check(sigismember(&mask, SIGUSR2) && sigismember(&mask, SIGHUP) && !sigismember(&mask, SIGUSR1),
          "another mask inside the handler");
    handled[4]++;
}

static void *run(void *argument) {
    long kind = my_kind = (int)(long)argument;
    sigset_t outside, inside, after;
    sigemptyset(&outside);
    sigaddset(&outside, SIGUSR1);
    sigaddset(&outside, SIGRTMIN + (int)kind);
    pthread_sigmask(SIG_SETMASK, &outside, NULL);
    sigemptyset(&inside); /* only inside the call does SIGUSR1 get through */
    sigaddset(&inside, SIGTERM);
    int result = -1;
    __atomic_add_fetch(&entered, kind != 4, __ATOMIC_SEQ_CST);
    switch (kind) {
        case 0: result = ppoll(NULL, 0, NULL, &inside); break;
        case 1: result = pselect(0, NULL, NULL, NULL, NULL, &inside); break;
        case 2: {
            int set = must(epoll_create1(0));
            /* any stop may give EINTR here: only then with no handler run is it called again */
            while ((result = epoll_pwait(set, &(struct epoll_event){0}, 1, -1, &inside)) == -1 && errno == EINTR && !handled[2]) {
            }
            break;
        }
        case 3: result = sigsuspend(&inside); break;
        case 4:
            sigemptyset(&outside);
            pthread_sigmask(SIG_SETMASK, &outside, NULL);
            pthread_kill(pthread_self(), SIGUSR2);
            errno = EINTR;
            break;
    }
    int error = errno;
    check(result == -1 && error == EINTR, "kind %ld ended with %d: %s", kind, result, strerror(error));
    check_equal(handled[kind], 1);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    if (sabotage()) sigaddset(&after, SIGCHLD);
    for (int signal = 1; signal <= SIGRTMAX; signal++)
        check(sigismember(&outside, signal) == sigismember(&after, signal), "kind %ld: signal %d differs in the mask", kind, signal);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    action.sa_handler = on_long_signal;
    sigaddset(&action.sa_mask, SIGHUP);
    sigaction(SIGUSR2, &action, NULL);
    for (long i = 0; i < KINDS; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (entered < KINDS) sleep_ms(1);
    sleep_ms(50);
    ready();
    wait_go();
    for (int i = 0; i < 4; i++) check_equal(handled[i], 0);
    for (int i = 0; i < 4; i++) pthread_kill(threads[i], SIGUSR1);
    for (int i = 0; i < KINDS; i++) pthread_join(threads[i], NULL);
    return finish();
}
