/* A tree of forks three deep: pids, parents, and wait statuses, normal and by signal. */
#include "subject.h"

enum { WIDTH = 2, DEPTH = 3 };

static char name[32];

/* Every node but the root runs this: it makes its own children, waits for the end, and checks who it is. */
__attribute__((noreturn)) static void node(int depth, int number, pid_t parent) {
    pid_t self = getpid(), children[WIDTH] = {0};
    if (depth < DEPTH)
        for (int i = 0; i < WIDTH; i++)
            if ((children[i] = must(fork())) == 0) node(depth + 1, number * WIDTH + i, self);
    snprintf(name, sizeof name, "node.%d.%d", depth, number);
    mark(name);
    wait_go();
    if (sabotage() && depth == DEPTH && number == 1) _exit(99);
    check_equal(getpid(), self);
    check_equal(getppid(), parent);
    if (depth < DEPTH)
        for (int i = 0; i < WIDTH; i++) reap(children[i]);
    check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child too many");
    if (depth == DEPTH && number == 0) await_mark("told");
    finish_child();
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t self = getpid(), children[WIDTH], exits, dies;
    for (int i = 0; i < WIDTH; i++)
        if ((children[i] = must(fork())) == 0) node(1, i, self);
    if ((exits = must(fork())) == 0) {
        wait_go();
        _exit(42);
    }
    if ((dies = must(fork())) == 0) {
        await_mark("never");
        _exit(0);
    }
    for (int depth = 1, width = WIDTH; depth <= DEPTH; depth++, width *= WIDTH)
        for (int i = 0; i < width; i++) {
            snprintf(name, sizeof name, "node.%d.%d", depth, i);
            await_mark(name);
        }
    ready();
    wait_go();

    int status;
    check_equal(waitpid(exits, &status, 0), exits);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 42, "exit status 0x%x", status);
    check_equal(waitpid(dies, &status, WNOHANG), 0);
    check_equal(kill(dies, SIGTERM), 0);
    check_equal(waitpid(dies, &status, 0), dies);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status of the killed one 0x%x", status);
    mark("told");
    for (int i = 0; i < WIDTH; i++) reap(children[i]);
    check_equal(getpid(), self);
    check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child too many");
    return finish();
}
