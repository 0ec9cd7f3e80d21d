/* Interval timers: what remains of them, their intervals, and that they still fire. */
#include "subject.h"
#include <sys/time.h>

static volatile sig_atomic_t alarms, virtual_alarms, profiles;
static void count(int signal) {
    if (signal == SIGALRM) alarms++;
    if (signal == SIGVTALRM) virtual_alarms++;
    if (signal == SIGPROF) profiles++;
}

static double seconds(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec * 1e-6; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGALRM, count);
    signal(SIGVTALRM, count);
    signal(SIGPROF, count);
    static const int which[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    struct itimerval set[] = {{{500, 250000}, {1000, 0}}, {{0, 700000}, {2000, 0}}, {{7, 0}, {3000, 0}}}, got;
    for (int i = 0; i < 3; i++) must(setitimer(which[i], &set[i], NULL));
    pid_t child = must(fork()); /* one that fires after the restore, again and again */
    if (child == 0) {
        struct itimerval often = {{0, 20000}, {0, 20000}};
        must(setitimer(ITIMER_REAL, &often, NULL));
        mark("child");
        wait_go();
        int seen = alarms;
        for (int i = 0; i < 2000 && alarms < seen + 3; i++) sleep_ms(5);
        check(alarms >= seen + 3, "a repeating timer no longer fires");
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(setitimer(ITIMER_VIRTUAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL));
    for (int i = 0; i < 3; i++) {
        must(getitimer(which[i], &got));
        check(seconds(got.it_interval) == seconds(set[i].it_interval) ||
                  /* CPU timers may be rounded to ticks */ seconds(got.it_interval) - seconds(set[i].it_interval) < 0.011,
              "timer %d: interval %f instead of %f", i, seconds(got.it_interval), seconds(set[i].it_interval));
        check(seconds(got.it_interval) > 0, "timer %d: the interval is gone", i);
        check(seconds(got.it_value) > 0, "timer %d is off", i);
        check(seconds(got.it_value) <= seconds(set[i].it_value) + 0.011, "timer %d: %f s are left of %f", i,
              seconds(got.it_value), seconds(set[i].it_value));
        check(seconds(got.it_value) > seconds(set[i].it_value) - 500, "timer %d: only %f s are left of %f", i,
              seconds(got.it_value), seconds(set[i].it_value));
    }
    check_equal(alarms + virtual_alarms + profiles, 0);
    /* The processor-time timer fires when it should. */
    struct itimerval soon = {{0, 0}, {0, 50000}};
    must(setitimer(ITIMER_VIRTUAL, &soon, NULL));
    for (volatile long i = 0; i < 20000000000 && !virtual_alarms; i++) {
    }
    check_equal(virtual_alarms, 1);
    reap(child);
    return finish();
}
