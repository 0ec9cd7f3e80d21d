/* Many mappings of two pages each, with a page of content. Neighbours differ in protection, so that they stay apart. */
#include "job.h"

enum { PAGE = 4096 };
static long count;
static char *base;

static const char *check(void)
{
    for (long i = 0; i < count; i++) {
        uint64_t *at = (uint64_t *)(base + i * 2 * PAGE);
        if (at[0] != scatter(i) || at[PAGE / 8] != 0)
            return "a mapping has changed";
        if (i % 2 == 0)
            at[1] = 1; /* Kills us if it cannot be written. */
    }
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    count = number(argc, argv, 2);
    base = mmap(NULL, count * 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        die("mmap");
    for (long i = 0; i < count; i++) {
        *(uint64_t *)(base + i * 2 * PAGE) = scatter(i);
        if (i % 2 == 1 && mprotect(base + i * 2 * PAGE, 2 * PAGE, PROT_READ) != 0)
            die("mprotect");
    }
    return live(check);
}
