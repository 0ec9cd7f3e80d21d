/* CLOCK_MONOTONIC and CLOCK_BOOTTIME never go back, nor jump: argv[2] tells by how many seconds at most they may go on. */
#include "subject.h"
#include <sys/timerfd.h>

static long long seconds(clockid_t clock) {
    struct timespec time;
    must(clock_gettime(clock, &time));
    return time.tv_sec;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    long long most = argc > 2 ? atoll(argv[2]) : 1000000;
    long long monotonic = seconds(CLOCK_MONOTONIC), boottime = seconds(CLOCK_BOOTTIME);
    int timer = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    struct itimerspec deadline = {.it_value = {.tv_sec = monotonic + 100000}};
    must(timerfd_settime(timer, TFD_TIMER_ABSTIME, &deadline, NULL));
    ready();
    wait_go();
    long long gone = seconds(CLOCK_MONOTONIC) - monotonic, since = seconds(CLOCK_BOOTTIME) - boottime;
    if (sabotage()) gone = -1;
    check(gone >= 0 && gone <= most, "CLOCK_MONOTONIC went on by %lld s", gone);
    check(since >= 0 && since <= most, "CLOCK_BOOTTIME went on by %lld s", since);
    struct itimerspec left;
    must(timerfd_gettime(timer, &left));
    check(left.it_value.tv_sec > 100000 - most && left.it_value.tv_sec <= 100000, "%lld s are left of a timer", (long long)left.it_value.tv_sec);
    return finish();
}
