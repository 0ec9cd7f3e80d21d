/* How willing a process is to be killed when memory is short. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char text[32];
    spew("/proc/self/oom_score_adj", "321", 3);
    pid_t child = must(fork());
    if (child == 0) {
        spew("/proc/self/oom_score_adj", "654", 3);
        mark("child");
        wait_go();
        slurp("/proc/self/oom_score_adj", text, sizeof text);
        check_equal(atoi(text), 654);
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();
    if (sabotage()) spew("/proc/self/oom_score_adj", "400", 3);
    slurp("/proc/self/oom_score_adj", text, sizeof text);
    check_equal(atoi(text), 321);
    reap(child);
    return finish();
}
