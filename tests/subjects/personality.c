/* The execution domain: a process without address randomisation keeps that, for its children by exec too. */
#include "subject.h"
#include <sys/personality.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    unsigned long wanted = ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC;
    must(personality(wanted));
    pid_t child = must(fork());
    if (child == 0) {
        must(personality(PER_LINUX));
        mark("child");
        wait_go();
        check_equal(personality(0xffffffff), PER_LINUX);
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();
    if (sabotage()) must(personality(0));
    check_equal((unsigned)personality(0xffffffff), wanted);
    reap(child);
    return finish();
}
