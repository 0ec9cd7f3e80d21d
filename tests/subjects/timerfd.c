/* Timer descriptors: clocks, time left, period, expirations not yet read, absolute times, disarmed ones. */
#include "subject.h"
#include <poll.h>
#include <sys/timerfd.h>

static int make(int clock, int flags, int how, long long value, long long interval) {
    int fd = must(timerfd_create(clock, flags));
    struct itimerspec time = {{interval / 1000, interval % 1000 * 1000000}, {value / 1000, value % 1000 * 1000000}};
    if (how & TFD_TIMER_ABSTIME) {
        struct timespec now_;
        must(clock_gettime(clock, &now_));
        time.it_value.tv_sec += now_.tv_sec;
        time.it_value.tv_nsec += now_.tv_nsec;
        if (time.it_value.tv_nsec >= 1000000000) time.it_value.tv_sec++, time.it_value.tv_nsec -= 1000000000;
    }
    must(timerfd_settime(fd, how, &time, NULL));
    return fd;
}

static long long left_ms(int fd) {
    struct itimerspec time;
    must(timerfd_gettime(fd, &time));
    return time.it_value.tv_sec * 1000 + time.it_value.tv_nsec / 1000000;
}

static long long period_ms(int fd) {
    struct itimerspec time;
    must(timerfd_gettime(fd, &time));
    return time.it_interval.tv_sec * 1000 + time.it_interval.tv_nsec / 1000000;
}

static uint64_t take(int fd) {
    uint64_t ticks = 0;
    check(read(fd, &ticks, 8) == 8, "read: %s", strerror(errno));
    return ticks;
}

static int waits(int fd) {
    struct pollfd poll_ = {fd, POLLIN, 0};
    return poll(&poll_, 1, 0) == 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int monotonic = make(CLOCK_MONOTONIC, 0, 0, 1000000, 0);
    int realtime = make(CLOCK_REALTIME, TFD_CLOEXEC, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 2000000, 5000);
    int boottime = make(CLOCK_BOOTTIME, TFD_NONBLOCK, 0, 3000000, 7777);
    int fired = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 1, 0);
    int ticking = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 1, 50);
    int idle = make(CLOCK_REALTIME, TFD_NONBLOCK, 0, 0, 0);
    int soon = make(CLOCK_MONOTONIC, 0, 0, 300, 0);
    double before = now();
    sleep_ms(180);
    ready();
    wait_go();

    if (sabotage()) {
        struct itimerspec none = {{0, 0}, {0, 0}};
        must(timerfd_settime(boottime, 0, &none, NULL));
    }
    uint64_t ticks;
    check(waits(monotonic), "the long timer fired");
    check(left_ms(monotonic) > 900000 && left_ms(monotonic) < 1000000, "%lld ms left of 1000 s", left_ms(monotonic));
    check(left_ms(realtime) > 1900000 && left_ms(realtime) < 2000000, "%lld ms left of 2000 s", left_ms(realtime));
    check_equal(period_ms(realtime), 5000);
    check(left_ms(boottime) > 2900000 && left_ms(boottime) < 3000000, "%lld ms left of 3000 s", left_ms(boottime));
    check_equal(period_ms(boottime), 7777);
    check_equal(take(fired), 1);
    check(read(fired, &ticks, 8) == -1 && errno == EAGAIN, "a timer fired twice");
    ticks = take(ticking);
    check(ticks >= 3, "%llu ticks are fewer than before", (unsigned long long)ticks);
    check((double)ticks <= (now() - before) * 20 + 2, "%llu ticks are too many", (unsigned long long)ticks);
    check_equal(period_ms(ticking), 50);
    check_equal(take(soon), 1);
    check(read(idle, &ticks, 8) == -1 && errno == EAGAIN, "a disarmed timer fired");
    check_equal(fcntl(realtime, F_GETFD), FD_CLOEXEC);
    check_equal(fcntl(monotonic, F_GETFL) & O_NONBLOCK, 0);
    check_equal(fcntl(idle, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    return finish();
}
