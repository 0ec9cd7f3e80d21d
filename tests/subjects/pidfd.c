/* Process descriptors: of a child that lives, of the process itself, of a zombie, of one that was waited for. */
#include "subject.h"
#include <poll.h>

static int open_process(pid_t pid, unsigned flags) { return (int)syscall(SYS_pidfd_open, pid, flags); }
static int send(int fd, int signal) { return (int)syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0); }
static int ended(int fd) {
    struct pollfd poll_ = {fd, POLLIN, 0};
    return poll(&poll_, 1, 0) == 1;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t living = must(fork());
    if (living == 0)
        for (;;) pause();
    pid_t zombie = must(fork());
    if (zombie == 0) _exit(7);
    pid_t gone = must(fork());
    if (gone == 0) _exit(8);
    int of_living = must(open_process(living, 0)), of_self = must(open_process(getpid(), O_NONBLOCK));
    int of_zombie = must(open_process(zombie, 0)), of_gone = must(open_process(gone, 0));
    int other = must(dup(of_gone));
    int status;
    must(waitpid(gone, &status, 0));
    while (!ended(of_zombie)) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) must(send(of_living, SIGKILL)), sleep_ms(50);
    check(!ended(of_living), "the child has ended");
    check_equal(send(of_self, 0), 0);
    check_equal(fcntl(of_self, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    check(ended(of_zombie), "the zombie lives");
    siginfo_t info;
    check_equal(waitid(P_PIDFD, (id_t)of_zombie, &info, WEXITED), 0);
    check_equal(info.si_status, 7);
    check(ended(of_gone), "the one waited for lives");
    check(send(of_gone, 0) == -1 && errno == ESRCH, "the one waited for can be reached");
    check(send(other, 0) == -1 && errno == ESRCH, "the one waited for can be reached");
    check_equal(fcntl(of_living, F_GETFD), FD_CLOEXEC);
    check_equal(send(of_living, SIGTERM), 0);
    check_equal(waitid(P_PIDFD, (id_t)of_living, &info, WEXITED), 0);
    check_equal(info.si_code, CLD_KILLED);
    check_equal(info.si_status, SIGTERM);
    return finish();
}
