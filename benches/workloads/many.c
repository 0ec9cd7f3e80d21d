/* Many of everything that the kernel keeps for a process: open files, threads, mappings. */
#include "job.h"
#include <sys/resource.h>

static long files, mappings;
static int *fds;
static char *area;

static void *wait_forever(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static const char *check(void)
{
    for (long i = 0; i < files; i++) {
        struct stat meta;
        if (lseek(fds[i], 0, SEEK_CUR) != i % 3 || fstat(fds[i], &meta) != 0 || meta.st_size != 3)
            return "a file is not as it was";
    }
    for (long i = 0; i < mappings; i += 2)
        if (*(uint64_t *)(area + i * 4096) != scatter(i))
            return "a page is not as it was";
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    files = number(argc, argv, 2);
    mappings = number(argc, argv, 4);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("setrlimit");
    fds = calloc(files + 1, sizeof *fds);
    if (mkdir("files", 0700) != 0)
        die("mkdir");
    for (long i = 0; i < files; i++) {
        char name[32];
        snprintf(name, sizeof name, "files/%ld", i);
        fds[i] = open(name, O_RDWR | O_CREAT, 0600);
        if (fds[i] < 0 || write(fds[i], "abc", 3) != 3 || lseek(fds[i], i % 3, SEEK_SET) < 0)
            die(name);
    }
    for (long i = 0; i < number(argc, argv, 3); i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, NULL, wait_forever, NULL)) != 0)
            die("pthread_create");
    }
    /* Every second page is of another kind, so that none merges with its neighbour. */
    area = mmap(NULL, mappings * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        die("mmap");
    for (long i = 0; i < mappings; i++)
        if (i % 2 == 0)
            *(uint64_t *)(area + i * 4096) = scatter(i);
        else if (mprotect(area + i * 4096, 4096, PROT_READ) != 0)
            die("mprotect");
    return live(check);
}
