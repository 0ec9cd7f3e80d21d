/* POSIX timers on several clocks, with every kind of notification: ids (with gaps), remaining time, interval, overruns. */
#include "subject.h"
#include <pthread.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* By system call: libc's timer_create knows no SIGEV_THREAD_ID on every libc, and hides the ids. */
static int create(clockid_t clock, int notify, int signal, long value, pid_t thread) {
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = (void *)value;
    if (notify == SIGEV_THREAD_ID) event.sigev_notify_thread_id = thread;
    int id = -1;
    must(syscall(SYS_timer_create, clock, &event, &id));
    return id;
}

static void arm(int id, double first, double interval) {
    struct itimerspec spec = {{(time_t)interval, (long)((interval - (double)(time_t)interval) * 1e9)},
                              {(time_t)first, (long)((first - (double)(time_t)first) * 1e9)}};
    must(syscall(SYS_timer_settime, id, 0, &spec, NULL));
}

static double seconds(struct timespec time) { return (double)time.tv_sec + (double)time.tv_nsec * 1e-9; }

static void expect(int id, double at_most, double interval) {
    struct itimerspec spec;
    if (!check(syscall(SYS_timer_gettime, id, &spec) == 0, "timer %d is gone: %s", id, strerror(errno))) return;
    double left = seconds(spec.it_value);
    check(left <= at_most + 0.02 && left > at_most - 600, "timer %d: %f s are left of %f", id, left, at_most);
    check(seconds(spec.it_interval) - interval < 1e-6 && seconds(spec.it_interval) - interval > -1e-6,
          "timer %d: interval %f instead of %f", id, seconds(spec.it_interval), interval);
}

static volatile pid_t handler_thread, worker;
static volatile long handler_value;
static volatile int handled;
static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    handler_thread = thread_id();
    handler_value = (long)info->si_value.sival_ptr;
    handled++;
}

static void *run(void *unused) {
    (void)unused;
    worker = thread_id();
    wait_go();
    while (!marked("main-done")) sleep_ms(5);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    must(sigaction(SIGRTMIN + 2, &action, NULL));
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 4);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!worker) sleep_ms(1);

    int ids[12];
    for (int i = 0; i < 5; i++) ids[i] = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
    int real = create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGUSR1, 0x1111, 0);
    int boot = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGUSR1, 0x2222, 0);
    int cpu = create(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR1, 0x3333, 0);
    int thread_cpu = create(CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR1, 0x4444, 0);
    int to_thread = create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 2, 0x123456789abc, worker);
    int overruns = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 0x5555, 0);
    int disarmed = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 0, 0);
    must(syscall(SYS_timer_delete, ids[1])); /* gaps */
    must(syscall(SYS_timer_delete, ids[3]));
    arm(ids[0], 5000, 0);
    arm(real, 6000, 12.5);
    arm(boot, 7000, 0);
    arm(cpu, 8000, 3);
    arm(thread_cpu, 9000, 0);
    arm(to_thread, 4000, 0.25);
    arm(overruns, 0.001, 0.001);
    sleep_ms(100); /* the signal pends, and overruns pile up */
    ready();
    wait_go();

    if (sabotage()) must(syscall(SYS_timer_delete, ids[2]));
    expect(ids[0], 5000, 0);
    expect(real, 6000, 12.5);
    expect(boot, 7000, 0);
    expect(cpu, 8000, 3);
    expect(thread_cpu, 9000, 0);
    expect(to_thread, 4000, 0.25);
    struct itimerspec spec;
    check(syscall(SYS_timer_gettime, disarmed, &spec) == 0 && seconds(spec.it_value) == 0, "the disarmed timer runs");
    check(syscall(SYS_timer_gettime, ids[2], &spec) == 0, "timer %d is gone", ids[2]);
    check(syscall(SYS_timer_gettime, ids[1], &spec) == -1 && errno == EINVAL, "timer %d is back", ids[1]);
    check(syscall(SYS_timer_gettime, ids[3], &spec) == -1 && errno == EINVAL, "timer %d is back", ids[3]);

    siginfo_t info;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    struct timespec patience = {60, 0};
    sleep_ms(100); /* what pended goes on counting overruns */
    int signal;
    while ((signal = sigtimedwait(&set, &info, &patience)) == -1 && errno == EINTR) {
    }
    check_equal(signal, SIGRTMIN + 4);
    check_equal((long)info.si_value.sival_ptr, 0x5555);
    check_equal(info.si_code, SI_TIMER);
    check_equal(info.si_timerid, overruns);
    check(info.si_overrun >= 20, "%d overruns in 100 ms or more", info.si_overrun);

    arm(to_thread, 0.01, 0);
    for (int i = 0; i < 2000 && !handled; i++) sleep_ms(5);
    check_equal(handled, 1);
    check_equal(handler_thread, worker);
    check_equal(handler_value, 0x123456789abc);
    mark("main-done");
    pthread_join(thread, NULL);
    return finish();
}
