/* Signal descriptors: masks, a signal that waits to be read, one shared with a child that reads it. */
#include "subject.h"
#include <sys/signalfd.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    sigset_t one, two, all;
    sigemptyset(&one), sigaddset(&one, SIGUSR1), sigaddset(&one, SIGRTMIN + 3);
    sigemptyset(&two), sigaddset(&two, SIGUSR2);
    sigorset(&all, &one, &two);
    must(sigprocmask(SIG_BLOCK, &all, NULL));
    int first = must(signalfd(-1, &one, SFD_NONBLOCK)), second = must(signalfd(-1, &two, SFD_CLOEXEC));
    union sigval value = {.sival_int = 4711};
    must(sigqueue(getpid(), SIGRTMIN + 3, value));
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        struct signalfd_siginfo info; /* blocks until the parent sends one; signals of the reader count */
        check(read(second, &info, sizeof info) == sizeof info, "read: %s", strerror(errno));
        check_equal(info.ssi_signo, SIGUSR2);
        check_equal(info.ssi_pid, getppid());
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    struct signalfd_siginfo info;
    if (sabotage()) check(read(first, &info, sizeof info) == sizeof info, "read");
    check(read(first, &info, sizeof info) == sizeof info, "read: %s", strerror(errno));
    check_equal(info.ssi_signo, SIGRTMIN + 3);
    check_equal(info.ssi_int, 4711);
    check(read(first, &info, sizeof info) == -1 && errno == EAGAIN, "there is more");
    must(kill(getpid(), SIGUSR2));
    check(read(first, &info, sizeof info) == -1 && errno == EAGAIN, "a signal outside of the mask was read");
    must(kill(getpid(), SIGUSR1));
    check(read(first, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "SIGUSR1 was not read");
    check_equal(fcntl(second, F_GETFD), FD_CLOEXEC);
    must(kill(child, SIGUSR2));
    reap(child);
    return finish();
}
