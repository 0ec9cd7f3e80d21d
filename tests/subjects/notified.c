/* Signals about descriptors (F_SETOWN, F_SETOWN_EX, F_SETSIG, O_ASYNC): who gets them, which, and the number that comes with them. */
#include "subject.h"
#include <pthread.h>
#include <sys/socket.h>

static volatile pid_t other_tid;
static volatile int thread_got;

static sigset_t only(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return set;
}

static int await(int signal, siginfo_t *info) {
    sigset_t set = only(signal);
    struct timespec second = {1, 0};
    return sigtimedwait(&set, info, &second);
}

/* Gets what is sent to it alone. */
static void *other(void *argument) {
    other_tid = thread_id();
    wait_go();
    siginfo_t info;
    thread_got = await(SIGRTMIN + 1, &info);
    return argument;
}

static void watch(int fd, int type, pid_t owner, int signal) {
    struct f_owner_ex who = {type, owner};
    must(fcntl(fd, F_SETOWN_EX, &who));
    must(fcntl(fd, F_SETSIG, signal));
    must(fcntl(fd, F_SETFL, must(fcntl(fd, F_GETFL)) | O_ASYNC));
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    for (int i = 0; i < 4; i++) {
        sigset_t set = only(SIGRTMIN + i);
        must(sigprocmask(SIG_BLOCK, &set, NULL));
    }
    pthread_t thread;
    must(-pthread_create(&thread, NULL, other, NULL));
    while (!other_tid) sleep_ms(1);
    int ends[2], second[2], pair[2];
    must(pipe(ends)), must(pipe(second)), must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    /* Under a number that is not the lowest. */
    int high = must(dup2(ends[0], 77));
    close(ends[0]);
    watch(high, F_OWNER_PID, getpid(), SIGRTMIN);
    watch(second[0], F_OWNER_TID, other_tid, SIGRTMIN + 1);
    watch(pair[0], F_OWNER_PID, getpid(), SIGRTMIN + 2);
    ready();
    wait_go();

    if (sabotage()) fcntl(high, F_SETSIG, SIGRTMIN + 3);
    siginfo_t info;
    check_equal(write(ends[1], "x", 1), 1);
    if (check(await(SIGRTMIN, &info) > 0, "no signal about the pipe")) check_equal(info.si_fd, high);
    struct f_owner_ex who = {0};
    check_equal(fcntl(second[0], F_GETOWN_EX, &who), 0);
    check_equal(who.type, F_OWNER_TID);
    check_equal(who.pid, other_tid);
    check_equal(write(second[1], "x", 1), 1);
    pthread_join(thread, NULL);
    check_equal(thread_got, SIGRTMIN + 1);
    check_equal(write(pair[1], "x", 1), 1);
    if (check(await(SIGRTMIN + 2, &info) > 0, "no signal about the socket")) check_equal(info.si_fd, pair[0]);
    check_equal(fcntl(high, F_GETSIG), SIGRTMIN);
    return finish();
}
