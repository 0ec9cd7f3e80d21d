/* Zombies: children that ended before the checkpoint and are waited for after it. */
#include "subject.h"
#include <sys/resource.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t exited = must(fork());
    if (exited == 0) _exit(37);
    pid_t killed = must(fork());
    if (killed == 0)
        for (;;) pause();
    pid_t aborted = must(fork());
    if (aborted == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        abort();
    }
    pid_t leader = must(fork()); /* a zombie that leads its own group and session */
    if (leader == 0) {
        setsid();
        _exit(3);
    }
    must(kill(killed, SIGKILL));
    pid_t all[] = {exited, killed, aborted, leader};
    siginfo_t info;
    for (size_t i = 0; i < COUNT(all); i++) must(waitid(P_PID, (id_t)all[i], &info, WEXITED | WNOWAIT));
    ready();
    wait_go();

    if (sabotage()) must(waitpid(exited, NULL, 0));
    int status = 0;
    memset(&info, 0, sizeof info);
    check_equal(waitid(P_PID, (id_t)exited, &info, WEXITED | WNOWAIT), 0);
    check_equal(info.si_code, CLD_EXITED);
    check_equal(info.si_status, 37);
    check_equal(info.si_pid, exited);
    check_equal(waitpid(exited, &status, 0), exited);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 37, "status of the exited one 0x%x", status);
    check_equal(waitpid(killed, &status, 0), killed);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status of the killed one 0x%x", status);
    check_equal(waitpid(aborted, &status, 0), aborted);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status of the aborted one 0x%x", status);
    check_equal(getsid(leader), leader);
    check_equal(waitpid(leader, &status, 0), leader);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 3, "status of the leader 0x%x", status);
    check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child too many");
    return finish();
}
