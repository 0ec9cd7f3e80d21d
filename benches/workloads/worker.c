/* So many MiB of memory that does not compress, of which so many percent, here and there, are read over and over. Each round that takes
 * more than twice as long as it can be done is noted in the file `slow`: from and to, in ns. */
#include "job.h"

enum { PAGE = 4096, WORDS = PAGE / sizeof(uint64_t), RUN = 16 };

static uint64_t *words;
static size_t pages, percent;

static uint64_t round_trip(void)
{
    uint64_t sum = 0;
    for (size_t run = 0; run < pages / RUN; run++) {
        size_t first = scatter(run) % (pages / RUN) * RUN;
        if (run % 100 < percent)
            for (size_t page = first; page < first + RUN; page++)
                sum += words[page * WORDS + page % WORDS];
    }
    return sum;
}

static void *work(void *unused)
{
    char line[64];
    int64_t best = INT64_MAX;
    uint64_t sum = round_trip();
    for (;;) {
        int64_t from = now_ns();
        if (round_trip() != sum)
            break;
        int64_t to = now_ns();
        if (to - from < best)
            best = to - from;
        if (to - from > 2 * best + GAP_NS) {
            snprintf(line, sizeof line, "%lld %lld\n", (long long)from, (long long)to);
            say("slow", O_APPEND, line);
        }
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    say("wrong", O_TRUNC, "");
    return unused;
}

static const char *check(void)
{
    for (size_t i = 0; i < pages * WORDS; i++)
        if (words[i] != scatter(i))
            return "memory has changed";
    return access("wrong", F_OK) == 0 ? "a sum has changed" : NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    pages = (size_t)number(argc, argv, 2) << 8;
    percent = (size_t)number(argc, argv, 3);
    words = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED)
        die("mmap");
    for (size_t i = 0; i < pages * WORDS; i++)
        words[i] = scatter(i);
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0)
        die("pthread_create");
    return live(check);
}
