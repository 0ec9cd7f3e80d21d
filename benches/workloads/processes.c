/* Many child processes that wait at a pipe, each with something of its own. */
#include "job.h"

static long count;
static struct { pid_t pid; int to, from; } *children;

static void child(long index, int from, int to)
{
    volatile uint64_t *own = malloc(1 << 16);
    char byte;
    *own = scatter(index);
    if (write(to, "r", 1) != 1 || read(from, &byte, 1) != 1)
        _exit(1);
    uint64_t answer = *own;
    _exit(write(to, &answer, sizeof answer) != sizeof answer);
}

static const char *check(void)
{
    for (long i = 0; i < count; i++) {
        uint64_t answer;
        int status;
        if (write(children[i].to, "g", 1) != 1 || read(children[i].from, &answer, sizeof answer) != sizeof answer)
            return "a child does not answer";
        if (answer != scatter(i))
            return "a child has lost what was its own";
        if (waitpid(children[i].pid, &status, 0) != children[i].pid || status != 0)
            return "a child is not where it was";
    }
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    count = number(argc, argv, 2);
    children = calloc(count, sizeof *children);
    for (long i = 0; i < count; i++) {
        int to[2], from[2];
        char byte;
        if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0)
            die("pipe");
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            for (long other = 0; other < i; other++) {
                close(children[other].to);
                close(children[other].from);
            }
            close(to[1]);
            close(from[0]);
            child(i, to[0], from[1]);
        }
        close(to[0]);
        close(from[1]);
        if (read(from[0], &byte, 1) != 1)
            die("read");
        children[i].pid = pid;
        children[i].to = to[1];
        children[i].from = from[0];
    }
    return live(check);
}
