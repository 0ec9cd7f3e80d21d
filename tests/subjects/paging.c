/* Memory that is moved, discarded, unmapped, shared with children and written while its pages may still be on their way in. An
 * argument says how many MiB there are. */
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>

enum { PAGE = 4096, MOST = 64 };

static char *memory, *still; /* each page holds what its seed says; `still` is never changed */
static uint32_t *seeds;      /* 0: zeroes */
static size_t pages;
static volatile int over;

static void put(char *page, uint32_t seed) {
    uint64_t *words = (uint64_t *)page;
    for (size_t i = 0; i < PAGE / 8; i++) words[i] = seed * 0x9e3779b97f4a7c15u + (seed ? i : 0);
}

static int holds(const char *page, uint32_t seed) {
    const uint64_t *words = (const uint64_t *)page;
    for (size_t i = 0; i < PAGE / 8; i++)
        if (words[i] != seed * 0x9e3779b97f4a7c15u + (seed ? i : 0)) return 0;
    return 1;
}

static uint32_t random_below(uint64_t *state, size_t limit) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((*state >> 32) * limit) >> 32);
}

static void check_page(size_t nth) {
    check(holds(memory + nth * PAGE, seeds[nth]), "page %zu is not what seed %u says but begins %lx", nth, seeds[nth],
          *(unsigned long *)(memory + nth * PAGE));
}

static void *look_on(void *argument) {
    uint64_t state = (uint64_t)(uintptr_t)argument;
    while (!over) {
        size_t nth = random_below(&state, pages);
        check(holds(still + nth * PAGE, (uint32_t)nth + 7), "page %zu of what nobody changes is changed", nth);
    }
    return NULL;
}

static void fresh(size_t nth, size_t count) {
    void *at = memory + nth * PAGE;
    must(mmap(at, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

static void change(uint64_t *state) {
    size_t nth = random_below(state, pages), count = 1 + random_below(state, MOST);
    if (nth + count > pages) count = pages - nth;
    size_t other = random_below(state, pages - count + 1);
    int overlap = other < nth + count && nth < other + count;
    switch (random_below(state, 8)) {
    case 0: /* discarded */
        must(madvise(memory + nth * PAGE, count * PAGE, MADV_DONTNEED));
        memset(seeds + nth, 0, count * sizeof *seeds);
        break;
    case 1: /* unmapped, and something else in its place */
        must(munmap(memory + nth * PAGE, count * PAGE));
        fresh(nth, count);
        memset(seeds + nth, 0, count * sizeof *seeds);
        break;
    case 2: /* moved over other memory */
        if (overlap) break;
        if (mremap(memory + nth * PAGE, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + other * PAGE) !=
            MAP_FAILED) {
            memcpy(seeds + other, seeds + nth, count * sizeof *seeds);
        } else { /* across mappings: some may have been moved */
            check(errno == EFAULT, "mremap: %s", strerror(errno));
            fresh(other, count);
            memset(seeds + other, 0, count * sizeof *seeds);
        }
        fresh(nth, count);
        memset(seeds + nth, 0, count * sizeof *seeds);
        break;
    case 3: { /* a child finds what its parent had */
        if (random_below(state, 4)) break;
        pid_t child = must(fork());
        if (child == 0) {
            for (size_t i = 0; i < 64; i++) check_page(random_below(state, pages));
            must(madvise(memory + nth * PAGE, count * PAGE, MADV_DONTNEED));
            memset(seeds + nth, 0, count * sizeof *seeds);
            for (size_t i = 0; i < count; i++) check_page(nth + i);
            finish_child();
        }
        if (random_below(state, 2)) check_page(nth);
        reap(child);
        break;
    }
    case 4: case 5: /* written */
        for (size_t i = 0; i < count; i++) put(memory + (nth + i) * PAGE, seeds[nth + i] = random_below(state, 1 << 30) + 1);
        break;
    default: /* read, and written by the kernel */
        for (size_t i = 0; i < count; i++) check_page(nth + i);
        int fd = must(open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
        check(read(fd, memory + nth * PAGE + 100, 1) == 1, "read into a page: %s", strerror(errno));
        put(memory + nth * PAGE, seeds[nth]);
        close(fd);
    }
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pages = (argc > 2 ? strtoul(argv[2], NULL, 10) : 24) * 256;
    int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS;
    memory = must(mmap(NULL, pages * PAGE, access, kind, -1, 0));
    still = must(mmap(NULL, pages * PAGE, access, kind, -1, 0));
    seeds = must(mmap(NULL, pages * sizeof *seeds, access, kind, -1, 0));
    for (size_t i = 0; i < pages; i++) {
        if (i % 16) put(memory + i * PAGE, seeds[i] = (uint32_t)i + 1);
        put(still + i * PAGE, (uint32_t)i + 7);
    }
    enum { HUGE = 2 << 20, HUGES = 4 };
    char *huge = must(mmap(NULL, (HUGES + 1) * HUGE, access, kind, -1, 0));
    huge += -(uintptr_t)huge % HUGE;
    madvise(huge, HUGES * HUGE, MADV_HUGEPAGE);
    for (size_t i = 0; i < HUGES * HUGE / PAGE; i++) put(huge + i * PAGE, (uint32_t)i + 9);
    ready();
    wait_go();

    pthread_t onlookers[2];
    for (size_t i = 0; i < COUNT(onlookers); i++)
        check(pthread_create(&onlookers[i], NULL, look_on, (void *)(i + 1)) == 0, "cannot start a thread");
    uint64_t state = 42;
    for (int i = 0; i < 3000; i++) change(&state);
    if (sabotage()) still[pages / 2 * PAGE + 5] ^= 1;
    for (size_t i = 0; i < pages; i++) {
        check_page(i);
        check(holds(still + i * PAGE, (uint32_t)i + 7), "page %zu of what nobody changes is changed", i);
    }
    for (size_t i = 0; i < HUGES * HUGE / PAGE; i++)
        check(holds(huge + i * PAGE, (uint32_t)i + 9), "page %zu of huge pages is changed", i);
    over = 1;
    for (size_t i = 0; i < COUNT(onlookers); i++) pthread_join(onlookers[i], NULL);
    return finish();
}
