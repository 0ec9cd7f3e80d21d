/* A process that another one of the job traces. */
#include "subject.h"
#include <sys/ptrace.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t child = must(fork());
    if (child == 0) {
        must(ptrace(PTRACE_TRACEME, 0, 0, 0));
        raise(SIGSTOP);
        finish_child();
    }
    int status;
    check_equal(waitpid(child, &status, 0), child);
    char text[16];
    spew("pid", text, (size_t)snprintf(text, sizeof text, "%d", (int)child));
    ready();
    wait_go();
    if (sabotage()) kill(child, SIGKILL);
    check_equal(ptrace(PTRACE_CONT, child, 0, 0), 0);
    reap(child);
    return finish();
}
