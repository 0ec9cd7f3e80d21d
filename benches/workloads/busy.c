/* Does the same over and over in a thread of its own, and tells how long it takes: the file `pace` says at the end how many ns an operation took on the average, once it had
 * warmed up. Every operation checks what it has worked out. */
#define BEAT_NS (2 * 1000 * 1000)
#include "job.h"
#include <spawn.h>

enum { WARM_MS = 1500, PAGE = 4096 };

static const char *operation, *wrong;
static volatile int ending;
static pthread_t worker;
static int huge;

static void must(int right, const char *what)
{
    if (!right)
        wrong = what;
}

static double *array(size_t bytes)
{
    char *at = mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    at += (2 << 20) - (uintptr_t)at % (2 << 20);
    madvise(at, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return (double *)at;
}

static void cpu(void)
{
    static uint64_t first;
    uint64_t x = 1;
    for (int i = 0; i < 100000; i++)
        x = scatter(x + i);
    if (!first)
        first = x;
    must(x == first, "the same arithmetic has another result");
}

static void stream(void)
{
    enum { COUNT = 8 << 20 };
    static double *a, *b, *c, round;
    if (!a) {
        a = array(COUNT * sizeof *a);
        b = array(COUNT * sizeof *b);
        c = array(COUNT * sizeof *c);
        for (size_t i = 0; i < COUNT; i++)
            b[i] = i, c[i] = 1;
    }
    round++;
    for (size_t i = 0; i < COUNT; i++)
        a[i] = b[i] + round * c[i];
    for (size_t i = 0; i < COUNT; i += 4099)
        must(a[i] == i + round, "an array has changed");
}

static void stencil(void)
{
    enum { SIDE = 2048 };
    static double *from, *to;
    if (!from) {
        from = array(SIDE * SIDE * sizeof *from);
        to = array(SIDE * SIDE * sizeof *to);
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++)
                from[y * SIDE + x] = to[y * SIDE + x] = 2 * x + 4 * y;
    }
    for (int y = 1; y < SIDE - 1; y++)
        for (int x = 1; x < SIDE - 1; x++) {
            double *at = from + y * SIDE + x;
            to[y * SIDE + x] = (at[-1] + at[1] + at[-SIDE] + at[SIDE]) / 4;
        }
    double *other = from;
    from = to;
    to = other;
    /* A slope is its own mean. */
    for (int y = 0; y < SIDE; y += 7)
        must(from[y * SIDE + y] == 6 * y, "the field has changed");
}

static void open_close(void)
{
    int fd = open("ready", O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && close(fd) == 0, "a file does not open");
}

static void map(void)
{
    char *at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED, "mmap fails");
    for (int i = 0; i < 16; i++) {
        must(at[i * PAGE] == 0, "new memory is not empty");
        at[i * PAGE] = 1;
    }
    munmap(at, 16 * PAGE);
}

static void ended(pid_t pid, int expected)
{
    int status;
    must(pid > 0 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == expected, "a child ends otherwise");
}

static void fork_exit(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(7);
    ended(pid, 7);
}

static void exec(void)
{
    char *const words[] = { "true", NULL };
    pid_t pid;
    must(posix_spawn(&pid, "/bin/true", NULL, NULL, words, environ) == 0, "a program does not start");
    ended(pid, 0);
}

static void ping_pong(void)
{
    static int to[2], from[2];
    static pid_t child;
    static unsigned char sent;
    unsigned char byte;
    if (!child) {
        if (pipe(to) != 0 || pipe(from) != 0)
            die("pipe");
        child = fork();
        if (child == 0) {
            close(to[1]);
            while (read(to[0], &byte, 1) == 1 && write(from[1], &byte, 1) == 1)
                ;
            _exit(0);
        }
    }
    sent++;
    must(write(to[1], &sent, 1) == 1 && read(from[0], &byte, 1) == 1 && byte == sent, "another byte comes back");
}

static void *argument(void *given)
{
    return given;
}

static void thread(void)
{
    static int given;
    pthread_t other;
    void *result = NULL;
    must(pthread_create(&other, NULL, argument, &given) == 0 && pthread_join(other, &result) == 0 && result == &given,
         "a thread ends otherwise");
}

static const struct {
    const char *name;
    void (*run)(void);
} OPERATIONS[] = {
    { "cpu", cpu },   { "stream", stream }, { "stencil", stencil }, { "open", open_close }, { "mmap", map },
    { "fork", fork_exit }, { "exec", exec }, { "pipe", ping_pong },  { "threads", thread },
};

static void *work(void *unused)
{
    void (*run)(void) = NULL;
    for (size_t i = 0; i < sizeof OPERATIONS / sizeof *OPERATIONS; i++)
        if (strcmp(operation, OPERATIONS[i].name) == 0)
            run = OPERATIONS[i].run;
    if (!run) {
        fprintf(stderr, "there is no operation %s\n", operation);
        exit(2);
    }
    int64_t begin = now_ns(), start = 0, now;
    uint64_t done = 0;
    char line[32];
    do {
        run();
        now = now_ns();
        if (start)
            done++;
        else if (now - begin > WARM_MS * 1000000LL)
            start = now;
    } while (!ending);
    snprintf(line, sizeof line, "%.3f", done ? (double)(now - start) / (double)done : 0.0);
    say("pace", O_TRUNC, line);
    return unused;
}

static const char *check(void)
{
    ending = 1;
    pthread_join(worker, NULL);
    return wrong;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    if (argc < 3) {
        fprintf(stderr, "usage: %s DIR OPERATION [huge]\n", argv[0]);
        return 2;
    }
    operation = argv[2];
    huge = argc > 3;
    if (pthread_create(&worker, NULL, work, NULL) != 0)
        die("pthread_create");
    return live(check);
}
