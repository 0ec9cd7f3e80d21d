/* A process whose children will be in another pid namespace than itself (CLONE_NEWPID of unshare(2)). */
#include "subject.h"
#include <sched.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (!sabotage() && unshare(CLONE_NEWPID) != 0) skip("unshare: %s", strerror(errno));
    ready();
    wait_go();
    pid_t child = must(fork());
    if (child == 0) {
        check_equal(getpid(), 1);
        finish_child();
    }
    reap(child);
    return finish();
}
