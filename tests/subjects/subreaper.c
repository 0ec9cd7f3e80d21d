/* A child subreaper goes on adopting orphans. */
#include "subject.h"
#include <sys/prctl.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    must(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t self = getpid();

    /* An orphan from before the checkpoint, adopted already. */
    pid_t middle = must(fork());
    if (middle == 0) {
        if (must(fork()) == 0) {
            while (getppid() != self) sleep_ms(1);
            mark("adopted");
            wait_go();
            check_equal(getppid(), self);
            _exit(subject_differences ? 1 : 11);
        }
        _exit(0);
    }
    must(waitpid(middle, NULL, 0));

    /* And one that becomes an orphan after it. */
    pid_t later = must(fork());
    if (later == 0) {
        if (must(fork()) == 0) {
            mark("grandchild");
            await_mark("orphaned");
            _exit(22);
        }
        wait_go();
        _exit(0);
    }
    await_mark("adopted");
    await_mark("grandchild");
    ready();
    wait_go();

    if (sabotage()) must(prctl(PR_SET_CHILD_SUBREAPER, 0));
    int is_reaper = -1;
    must(prctl(PR_GET_CHILD_SUBREAPER, &is_reaper));
    check_equal(is_reaper, 1);
    int status;
    check_equal(waitpid(later, &status, 0), later);
    mark("orphaned");
    int seen = 0;
    for (int i = 0; i < 2; i++) {
        pid_t pid = wait(&status);
        if (!check(pid > 0, "wait: %s", strerror(errno))) break;
        if (WIFEXITED(status)) seen += WEXITSTATUS(status);
    }
    check_equal(seen, 33);
    return finish();
}
