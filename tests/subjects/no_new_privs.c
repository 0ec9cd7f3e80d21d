/* The no_new_privs bit: set in one child, clear in the other. */
#include "subject.h"
#include <sys/prctl.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t children[2];
    int inherited = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    for (int set = 0; set < 2; set++) {
        if ((children[set] = must(fork())) == 0) {
            if (set) must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
            mark(set ? "with" : "without");
            wait_go();
            if (sabotage() && !set) must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
            check_equal(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), set || inherited);
            finish_child();
        }
        await_mark(set ? "with" : "without");
    }
    ready();
    wait_go();
    reap(children[0]);
    reap(children[1]);
    return finish();
}
