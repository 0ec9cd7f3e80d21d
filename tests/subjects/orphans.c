/* A daemon: its parent is dead, it has a session of its own, and whoever adopted it at the start does so again. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t parent = must(fork());
    if (parent == 0) {
        pid_t daemon = must(fork());
        if (daemon != 0) _exit(0);
        must(setsid());
        while (getppid() == parent) sleep_ms(1);
        pid_t self = getpid(), session = getsid(0), group = getpgrp();
        unsigned char *memory = must(malloc(100000));
        fill(memory, 100000, 5);
        char text[64];
        snprintf(text, sizeof text, "%d", (int)self);
        spew("daemon.pid", text, strlen(text));
        mark("daemon.ready");
        wait_go();
        if (sabotage()) memory[77] ^= 1;
        check_equal(getpid(), self);
        check_equal(getsid(0), session);
        check_equal(getpgrp(), group);
        check_filled(memory, 100000, 5);
        mark(subject_differences ? "daemon.differs" : "daemon.passed");
        finish_child();
    }
    int status;
    must(waitpid(parent, &status, 0));
    await_mark("daemon.ready");
    ready();
    wait_go();
    char text[64];
    slurp("daemon.pid", text, sizeof text);
    pid_t daemon = atoi(text);
    check(waitpid(daemon, NULL, WNOHANG) == -1 && errno == ECHILD, "the daemon has become a child of its grandparent");
    while (!marked("daemon.passed") && !marked("daemon.differs")) sleep_ms(5);
    check(marked("daemon.passed"), "the daemon found differences");
    return finish();
}
