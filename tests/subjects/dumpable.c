/* Whether a process may be dumped (and looked at by its user). */
#include "subject.h"
#include <sys/prctl.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t child = must(fork());
    if (child == 0) {
        must(prctl(PR_SET_DUMPABLE, 0));
        mark("child");
        wait_go();
        if (sabotage()) prctl(PR_SET_DUMPABLE, 1);
        check_equal(prctl(PR_GET_DUMPABLE), 0);
        finish_child();
    }
    await_mark("child");
    int before = prctl(PR_GET_DUMPABLE);
    ready();
    wait_go();
    check_equal(prctl(PR_GET_DUMPABLE), before);
    reap(child);
    return finish();
}
