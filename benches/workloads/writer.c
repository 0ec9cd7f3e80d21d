/* So many MiB of memory that does not compress, of which so many pages are written each second (-1: all, over and over). With a third
 * number, it is memory that a child shares, which does nothing. */
#include "job.h"

enum { PAGE = 4096, WORDS = PAGE / sizeof(uint64_t) };

static uint64_t *words;
static size_t pages;
static long rate;
/* How often each page was written. */
static uint32_t *times;

static void touch(size_t page)
{
    times[page]++;
    words[page * WORDS + 1] = scatter(page) + times[page];
}

static void *work(void *unused)
{
    char line[32];
    uint64_t done = 0;
    int64_t start = now_ns(), told = 0;
    for (;;) {
        int64_t now = now_ns();
        if (rate < 0) {
            for (size_t page = 0; page < pages; page++)
                touch(page);
            done += pages;
        } else {
            /* A step that visits every page before it comes back to one, and none next to the last. */
            for (uint64_t due = (uint64_t)((now - start) / 1e9 * (double)rate); done < due; done++)
                touch(done * 7919 % pages);
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        }
        if (now - told > 20 * 1000000) {
            told = now;
            snprintf(line, sizeof line, "%llu", (unsigned long long)done);
            say("written.tmp", O_TRUNC, line);
            rename("written.tmp", "written");
        }
    }
    return unused;
}

static const char *check(void)
{
    for (size_t page = 0; page < pages; page++)
        for (size_t i = 0; i < WORDS; i++) {
            uint64_t expected = i == 1 ? scatter(page) + times[page] : scatter(page * WORDS + i);
            /* The writer goes on meanwhile. */
            if (words[page * WORDS + i] != expected && i != 1)
                return "memory has changed";
            if (i == 1 && words[page * WORDS + 1] - scatter(page) - times[page] + 1 > 2)
                return "a page is older or newer than its number of writes";
        }
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    pages = (size_t)number(argc, argv, 2) << 8;
    rate = number(argc, argv, 3);
    int sharing = argc > 4 ? MAP_SHARED : MAP_PRIVATE;
    words = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    times = calloc(pages, sizeof *times);
    if (words == MAP_FAILED || !times)
        die("mmap");
    for (size_t page = 0; page < pages; page++)
        for (size_t i = 0; i < WORDS; i++)
            words[page * WORDS + i] = i == 1 ? scatter(page) : scatter(page * WORDS + i);
    pid_t parent = getpid();
    if (argc > 4 && fork() == 0) {
        while (getppid() == parent)
            nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
        _exit(0);
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0)
        die("pthread_create");
    return live(check);
}
