/* One kind of kernel work again and again, timed: how much a job pays for being followed.
 *
 *   loops WHAT COUNT    prints "wall NS cpu NS": for one turn, of this process and those it has waited for
 *
 * WHAT is getpid, pingpong (a byte there and back between two processes), open (and close), mmap (touch, munmap), thread (create, join),
 * fork (exit, wait) or exec (fork, exec of itself, exit, wait).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int there[2], back[2];
static pid_t partner;

static void need(int good, const char *what)
{
    if (good)
        return;
    perror(what);
    exit(1);
}

static void turn_getpid(void)
{
    syscall(SYS_getpid);
}

static void turn_pingpong(void)
{
    char byte = 0;
    need(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "pingpong");
}

static void turn_open(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    need(fd >= 0, "/dev/null");
    close(fd);
}

static void turn_mmap(void)
{
    char *at = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(at != MAP_FAILED, "mmap");
    *at = 1;
    munmap(at, 16384);
}

static void *nothing(void *argument)
{
    return argument;
}

static void turn_thread(void)
{
    pthread_t thread;
    need(pthread_create(&thread, NULL, nothing, NULL) == 0, "pthread_create");
    pthread_join(thread, NULL);
}

static void turn_fork(void)
{
    pid_t child = fork();
    need(child >= 0, "fork");
    if (child == 0)
        _exit(0);
    need(waitpid(child, NULL, 0) == child, "waitpid");
}

static void turn_exec(void)
{
    static char *const again[] = { "loops", NULL };
    pid_t child = fork();
    need(child >= 0, "fork");
    if (child == 0) {
        execv("/proc/self/exe", again);
        _exit(1);
    }
    need(waitpid(child, NULL, 0) == child, "waitpid");
}

static const struct {
    const char *name;
    void (*turn)(void);
} kinds[] = {
    { "getpid", turn_getpid }, { "pingpong", turn_pingpong }, { "open", turn_open }, { "mmap", turn_mmap },
    { "thread", turn_thread }, { "fork", turn_fork },         { "exec", turn_exec },
};

/* The other side of the ping-pong; ends with the pipe. */
static void start_partner(void)
{
    char byte;
    need(pipe2(there, O_CLOEXEC) == 0 && pipe2(back, O_CLOEXEC) == 0, "pipe");
    partner = fork();
    need(partner >= 0, "fork");
    if (partner)
        return;
    close(there[1]);
    while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
        ;
    _exit(0);
}

static int64_t ns(struct timespec t)
{
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ns(t);
}

static int64_t cpu(void)
{
    struct timespec own;
    struct rusage ended;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    getrusage(RUSAGE_CHILDREN, &ended);
    return ns(own) + (ended.ru_utime.tv_sec + ended.ru_stime.tv_sec) * 1000000000LL +
           (ended.ru_utime.tv_usec + ended.ru_stime.tv_usec) * 1000LL;
}

int main(int argc, char **argv)
{
    /* It is what a turn of exec has executed. */
    if (argc == 1)
        return 0;
    void (*turn)(void) = NULL;
    for (size_t nth = 0; argc == 3 && nth < sizeof kinds / sizeof *kinds; nth++)
        if (strcmp(kinds[nth].name, argv[1]) == 0)
            turn = kinds[nth].turn;
    long count = turn ? atol(argv[2]) : 0;
    if (count <= 0) {
        fprintf(stderr, "usage: %s getpid|pingpong|open|mmap|thread|fork|exec COUNT\n", argv[0]);
        return 2;
    }
    if (turn == turn_pingpong)
        start_partner();
    for (long nth = 0; nth < count / 10 + 1; nth++)
        turn();
    int64_t wall_before = wall(), cpu_before = cpu();
    for (long nth = 0; nth < count; nth++)
        turn();
    int64_t wall_after = wall();
    /* Its time counts once it has been waited for; its warming up is in it too. */
    if (partner) {
        close(there[1]);
        waitpid(partner, NULL, 0);
    }
    printf("wall %.2f cpu %.2f\n", (double)(wall_after - wall_before) / count, (double)(cpu() - cpu_before) / count);
    return 0;
}
