/* 32 children, each with memory of its own. */
#include "subject.h"

enum { CHILDREN = 32, LENGTH = 300000 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t children[CHILDREN];
    char name[32];
    unsigned char *memory = must(malloc(LENGTH));
    fill(memory, LENGTH, 1000);
    for (int i = 0; i < CHILDREN; i++) {
        if ((children[i] = must(fork())) == 0) {
            pid_t self = getpid();
            fill(memory, LENGTH / 2, (uint64_t)i);
            snprintf(name, sizeof name, "child-%d", i);
            mark(name);
            wait_go();
            if (sabotage() && i == 3) memory[0]++;
            check_filled(memory, LENGTH / 2, (uint64_t)i);
            check_equal(getpid(), self);
            finish_child();
        }
    }
    for (int i = 0; i < CHILDREN; i++) {
        snprintf(name, sizeof name, "child-%d", i);
        await_mark(name);
    }
    ready();
    wait_go();
    check_filled(memory, LENGTH, 1000);
    for (int i = 0; i < CHILDREN; i++) reap(children[i]);
    return finish();
}
