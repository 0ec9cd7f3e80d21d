/* So many MiB of memory that does not compress, of which so many percent, here and there, are read over and over. Each round that takes
 * more than twice as long as it can be done is noted in the file `slow`: from and to, in ns. So is, at the end, each read that took more than WAIT_NS, in the file `waits`. */
#include "job.h"

enum { PAGE = 4096, WORDS = PAGE / sizeof(uint64_t), RUN = 16, WAIT_NS = 5000, WAITS = 1 << 17 };

static uint64_t *words;
static size_t pages, percent, waited;
static struct { int64_t from, to; } *waits;

static uint64_t read_page(size_t page)
{
    int64_t from = now_ns();
    uint64_t word = *(volatile uint64_t *)&words[page * WORDS + page % WORDS];
    int64_t to = now_ns();
    if (to - from > WAIT_NS && waited < WAITS) {
        waits[waited].from = from;
        waits[waited++].to = to;
    }
    return word;
}

static void tell_waits(void)
{
    FILE *file = fopen("waits", "we");
    if (!file)
        die("waits");
    for (size_t i = 0; i < waited; i++)
        fprintf(file, "%lld %lld\n", (long long)waits[i].from, (long long)waits[i].to);
    fclose(file);
}

static uint64_t round_trip(void)
{
    uint64_t sum = 0;
    for (size_t run = 0; run < pages / RUN; run++) {
        size_t first = scatter(run) % (pages / RUN) * RUN;
        if (run % 100 < percent)
            for (size_t page = first; page < first + RUN; page++)
                sum += read_page(page);
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
    tell_waits();
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
    waits = calloc(WAITS, sizeof *waits);
    if (words == MAP_FAILED || !waits)
        die("mmap");
    for (size_t i = 0; i < pages * WORDS; i++)
        words[i] = scatter(i);
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0)
        die("pthread_create");
    return live(check);
}
