/* Threads caught inside system calls. Each call goes on as the kernel itself would have continued it: sleeps have slept
 * long enough and did not start anew, what waits for an event still waits, and calls that any stop interrupts give EINTR. */
#include "subject.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

/* As in linux/futex.h, which not every C library's include path has. */
enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129, FUTEX_WAIT_BITSET_PRIVATE = 137 };
#define FUTEX_BITSET_MATCH_ANY 0xffffffffu

static const double LONG = 4.0;   /* seconds that the timed calls wait */
static const double BEFORE = 2.0; /* of which these have passed when the checkpoint may come */

static int pipe_ends[2], epoll_pipe[2];
static pid_t waited_child;
static volatile int entered, finished_timed, ended_blocking, woken;
static volatile long ticks; /* 5 ms steps of the main thread: never more than the time the job ran */
static uint32_t futex_word = 7, futex_block = 9;

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout, uint32_t bits) {
    return syscall(SYS_futex, word, operation, value, timeout, NULL, bits);
}

static struct timespec after(clockid_t clock, double seconds) {
    struct timespec time;
    clock_gettime(clock, &time);
    time.tv_sec += (time_t)seconds;
    return time;
}

/* The timed calls. Each returns 0 when the call ended the right way. */
static int call_nanosleep(void) { return nanosleep(&(struct timespec){(time_t)LONG, 0}, NULL); }
static int call_clock_relative(void) {
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){(time_t)LONG, 0}, NULL);
}
static int call_clock_absolute(void) {
    struct timespec until = after(CLOCK_MONOTONIC, LONG);
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
static int call_poll(void) { return poll(&(struct pollfd){pipe_ends[0], POLLIN, 0}, 1, (int)(LONG * 1000)); }
static int call_ppoll(void) {
    sigset_t none;
    sigemptyset(&none);
    return ppoll(&(struct pollfd){pipe_ends[0], POLLIN, 0}, 1, &(struct timespec){(time_t)LONG, 0}, &none);
}
static int call_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_ends[0], &set);
    return select(pipe_ends[0] + 1, &set, NULL, NULL, &(struct timeval){(time_t)LONG, 0});
}
static int call_futex_relative(void) {
    long result = futex(&futex_word, FUTEX_WAIT_PRIVATE, 7, &(struct timespec){(time_t)LONG, 0}, 0);
    return !(result == -1 && errno == ETIMEDOUT);
}
static int call_futex_absolute(void) {
    struct timespec until = after(CLOCK_MONOTONIC, LONG);
    long result = futex(&futex_word, FUTEX_WAIT_BITSET_PRIVATE, 7, &until, FUTEX_BITSET_MATCH_ANY);
    return !(result == -1 && errno == ETIMEDOUT);
}
/* These two give EINTR at any stop, and the caller goes on with the time that is left. */
static int call_epoll(void) {
    int set = must(epoll_create1(0)), result;
    double end = now() + LONG;
    do result = epoll_wait(set, &(struct epoll_event){0}, 1, (int)((end - now()) * 1000) + 1);
    while (result == -1 && errno == EINTR && now() < end);
    return result == -1 && errno == EINTR ? 0 : result; /* the stop may have lasted until after the end */
}
static int call_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    double end = now() + LONG;
    int result;
    do {
        double left = end - now();
        struct timespec timeout = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        result = (int)syscall(SYS_rt_sigtimedwait, &set, NULL, &timeout, 8); /* libc may start the wait anew */
    } while (result == -1 && errno == EINTR && now() < end);
    return !(result == -1 && (errno == EAGAIN || errno == EINTR));
}

static const struct {
    const char *name;
    int (*call)(void);
} timed[] = {{"nanosleep", call_nanosleep},          {"clock_nanosleep, relative", call_clock_relative},
             {"clock_nanosleep, absolute", call_clock_absolute}, {"poll", call_poll},
             {"ppoll", call_ppoll},                  {"select", call_select},
             {"futex, relative", call_futex_relative}, {"futex, absolute", call_futex_absolute},
             {"epoll_wait", call_epoll},             {"sigtimedwait", call_sigtimedwait}};

static void *run_timed(void *argument) {
    size_t which = (size_t)argument;
    double start = now();
    __atomic_add_fetch(&entered, 1, __ATOMIC_SEQ_CST);
    errno = 0;
    int result = timed[which].call();
    int error = errno;
    double slept = now() - start;
    long ran = ticks;
    check(result == 0, "%s gave %d: %s", timed[which].name, result, strerror(error));
    check(slept >= LONG - 0.01, "%s took %.3f s instead of %.0f", timed[which].name, slept, LONG);
    check((double)ran * 0.005 < LONG + 1.0, "%s ended after %.3f s of running: its wait began anew", timed[which].name,
          (double)ran * 0.005);
    __atomic_add_fetch(&finished_timed, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* The calls that block until something happens. */
static void on_signal(int signal) { (void)signal; }

static int block_pause(void) { return !(pause() == -1 && errno == EINTR); }
static int block_sigsuspend(void) {
    sigset_t mask;
    sigfillset(&mask);
    sigdelset(&mask, SIGUSR1);
    return !(sigsuspend(&mask) == -1 && errno == EINTR);
}
static int block_read(void) {
    char byte;
    return !(read(pipe_ends[0], &byte, 1) == 1 && byte == 'x');
}
static int block_wait(void) {
    int status;
    return !(waitpid(waited_child, &status, 0) == waited_child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
}
static int block_futex(void) { return (int)futex(&futex_block, FUTEX_WAIT_PRIVATE, 9, NULL, 0); }
static int block_epoll(void) {
    int set = must(epoll_create1(0)), result;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x1234567890};
    must(epoll_ctl(set, EPOLL_CTL_ADD, epoll_pipe[0], &event));
    memset(&event, 0, sizeof event);
    while ((result = epoll_wait(set, &event, 1, -1)) == -1 && errno == EINTR && !woken) {
    }
    return !(result == 1 && event.data.u64 == 0x1234567890);
}

static const struct {
    const char *name;
    int (*call)(void);
} blocking[] = {{"pause", block_pause},     {"sigsuspend", block_sigsuspend}, {"read", block_read},
                {"wait4", block_wait},      {"futex", block_futex},           {"epoll_wait without end", block_epoll}};

static void *run_blocking(void *argument) {
    size_t which = (size_t)argument;
    __atomic_add_fetch(&entered, 1, __ATOMIC_SEQ_CST);
    int result = blocking[which].call(), error = errno;
    check(woken, "%s ended before anything happened, with %d: %s", blocking[which].name, result, strerror(error));
    check(result == 0, "%s ended wrongly, with %d: %s", blocking[which].name, result, strerror(error));
    __atomic_add_fetch(&ended_blocking, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + 5);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    must(pipe(pipe_ends));
    must(pipe(epoll_pipe));
    if ((waited_child = must(fork())) == 0) {
        await_mark("child-may-end");
        _exit(5);
    }
    pthread_t threads[COUNT(timed) + COUNT(blocking)];
    double start = now();
    for (size_t i = 0; i < COUNT(timed); i++) must(-pthread_create(&threads[i], NULL, run_timed, (void *)i));
    for (size_t i = 0; i < COUNT(blocking); i++)
        must(-pthread_create(&threads[COUNT(timed) + i], NULL, run_blocking, (void *)i));
    while (entered < (int)COUNT(threads) || now() - start < BEFORE) sleep_ms(5), ticks++;
    ready();
    if (sabotage()) pthread_kill(threads[0], SIGUSR1);
    while (!marked("go") || finished_timed < (int)COUNT(timed)) sleep_ms(5), ticks++;
    sleep_ms(100);

    check_equal(ended_blocking, 0);
    woken = 1;
    mark("child-may-end");
    pthread_kill(threads[COUNT(timed)], SIGUSR1);
    pthread_kill(threads[COUNT(timed) + 1], SIGUSR1);
    check_equal(write(pipe_ends[1], "x", 1), 1);
    check_equal(write(epoll_pipe[1], "x", 1), 1);
    futex(&futex_block, FUTEX_WAKE_PRIVATE, 1, NULL, 0);
    for (size_t i = 0; i < COUNT(threads); i++) pthread_join(threads[i], NULL);
    return finish();
}
