/* Processes that a signal ends, one after the other: at whatever moment one looks, a signal is on its way to somebody. */
#include "subject.h"
#include <pthread.h>
#include <sys/time.h>

enum { LANES = 3 };

static volatile int stop, expected = SIGALRM;
static volatile long rounds[LANES];

static void die_soon(unsigned seed) {
    struct itimerval soon = {.it_value = {.tv_usec = 200 + seed * 7919 % 3000}};
    must(setitimer(ITIMER_REAL, &soon, NULL));
    /* Some sleep, some do not. */
    if (seed % 2) pause();
    for (;;) {
    }
}

static void *run(void *argument) {
    long lane = (long)argument;
    while (!stop) {
        pid_t pid = must(fork()), got;
        if (pid == 0) die_soon((unsigned)rounds[lane]);
        int status = 0;
        while ((got = waitpid(pid, &status, 0)) == -1 && errno == EINTR) {
        }
        if (!check(got == pid && WIFSIGNALED(status) && WTERMSIG(status) == expected, "lane %ld: wait gave %d, status 0x%x", lane,
                   (int)got, status))
            break;
        rounds[lane]++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[LANES];
    for (long i = 0; i < LANES; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (rounds[0] < 5 || rounds[1] < 5 || rounds[2] < 5) sleep_ms(1);
    ready();
    wait_go();
    if (sabotage()) expected = SIGPIPE;
    long before[LANES] = {rounds[0], rounds[1], rounds[2]};
    for (int i = 0; i < LANES; i++)
        while (rounds[i] < before[i] + 5 && !subject_differences) sleep_ms(1);
    stop = 1;
    for (int i = 0; i < LANES; i++) pthread_join(threads[i], NULL);
    return finish();
}
