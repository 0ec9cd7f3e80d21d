/* The parent-death signal still comes when the parent ends. */
#include "subject.h"
#include <sys/prctl.h>

static volatile sig_atomic_t came;
static void note(int signal) { came = signal; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t parent = must(fork());
    if (parent == 0) {
        pid_t child = must(fork());
        if (child == 0) {
            signal(SIGUSR2, note);
            must(prctl(PR_SET_PDEATHSIG, SIGUSR2));
            mark("armed");
            wait_go();
            int armed = -1;
            if (sabotage()) prctl(PR_SET_PDEATHSIG, 0);
            must(prctl(PR_GET_PDEATHSIG, &armed));
            check_equal(armed, SIGUSR2);
            check(!came, "the signal came before the parent ended");
            mark("may-die");
            for (int i = 0; i < 2000 && !came; i++) sleep_ms(5);
            check(came == SIGUSR2, "the parent ended, and no signal came");
            mark(subject_differences ? "child.differs" : "child.passed");
            finish_child();
        }
        await_mark("may-die");
        _exit(0);
    }
    await_mark("armed");
    ready();
    wait_go();
    check_equal(waitpid(parent, NULL, 0), parent);
    while (!marked("child.passed") && !marked("child.differs")) sleep_ms(5);
    check(marked("child.passed"), "the child found differences");
    return finish();
}
