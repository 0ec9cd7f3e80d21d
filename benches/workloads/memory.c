/* So many MiB of memory that does not compress ("noise") or does ("numbers", as the arrays of a numeric program). */
#include "job.h"

static uint64_t *words;
static size_t count;
static int noise;

static uint64_t word(size_t index)
{
    if (noise)
        return scatter(index);
    double value = 1.0 + (double)(index % 4096) / 4096;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static const char *check(void)
{
    for (size_t i = 0; i < count; i++)
        if (words[i] != word(i))
            return "memory has changed";
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    size_t bytes = (size_t)number(argc, argv, 2) << 20;
    noise = argc > 3 && strcmp(argv[3], "noise") == 0;
    count = bytes / sizeof *words;
    words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED)
        die("mmap");
    for (size_t i = 0; i < count; i++)
        words[i] = word(i);
    return live(check);
}
