/* Private and shared memory that is written in rounds, so that any page tells whether it belongs to the round that the others are of.
 * One page in sixteen is written a round; of the shared memory by a child that ends at once, unless the second argument is `alone`. With
 * one, it stands still after each round until the file `rounds` has more bytes than there were rounds. */
#include "subject.h"

#include <sys/mman.h>

enum { PAGES = 4096, STEP = 16, WORDS = 4096 / 8 };

static uint64_t word(uint64_t page, uint64_t round, uint64_t i) {
    uint64_t x = (page << 32 | round << 10 | i) * 0x9e3779b97f4a7c15u;
    return (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
}

static void set_page(uint64_t *memory, uint64_t page, uint64_t round) {
    for (uint64_t i = 0; i < WORDS; i++) memory[page * WORDS + i] = word(page, round, i);
}

static int is(const uint64_t *memory, uint64_t page, uint64_t round) {
    for (uint64_t i = 0; i < WORDS; i++)
        if (memory[page * WORDS + i] != word(page, round, i)) return 0;
    return 1;
}

static void write_round(uint64_t *memory, uint64_t round) {
    for (uint64_t page = round % STEP; page < PAGES; page += STEP) set_page(memory, page, round);
}

/* The last round before `round` in which a page was written. */
static uint64_t last(uint64_t page, uint64_t round) {
    uint64_t back = (round + STEP - 1 - page % STEP) % STEP + 1;
    return round > back ? round - back : page % STEP;
}

static off_t rounds_wanted(void) {
    struct stat st;
    return stat("rounds", &st) == 0 ? st.st_size : 0;
}

static void check_memory(const uint64_t *memory, uint64_t round, const char *what) {
    uint64_t wrong = 0;
    for (uint64_t page = 0; page < PAGES; page++) wrong += !is(memory, page, last(page, round));
    check(wrong == 0, "%d of %d pages of %s memory are not of round %d", (int)wrong, PAGES, what, (int)round);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    size_t size = PAGES * 4096UL;
    uint64_t *own = must(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    uint64_t *shared = must(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    for (uint64_t page = 0; page < PAGES; page++) {
        set_page(own, page, page % STEP);
        set_page(shared, page, page % STEP);
    }
    ready();
    uint64_t round = STEP;
    int alone = argc > 2 && strcmp(argv[2], "alone") == 0;
    while (!marked("go")) {
        if (argc > 2 && rounds_wanted() <= (off_t)(round - STEP)) {
            sleep_ms(2);
            continue;
        }
        write_round(own, round);
        pid_t child = alone ? 0 : must(fork());
        if (child == 0) write_round(shared, round);
        if (child == 0 && !alone) _exit(0);
        if (!alone) reap(child);
        round++;
        char name[32];
        snprintf(name, sizeof name, "round.%d", (int)(round - STEP));
        if (argc > 2) mark(name);
        sleep_ms(2);
    }
    if (sabotage()) own[0] ^= 1;
    check_memory(own, round, "private");
    check_memory(shared, round, "shared");
    return finish();
}
