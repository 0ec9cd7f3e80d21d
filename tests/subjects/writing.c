/* Memory that is written all the while, also while it is copied: each page tells how often it was written, and so does a
 * table. Pages are given back, moved and replaced in between. */
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, BLOCK = 512 * PAGE, PAGES = 4 * 512 };

static uint64_t table[PAGES]; /* what each page of `area` begins and ends with */
static char *area;

static void write_page(int page, uint64_t value) {
    uint64_t *words = (uint64_t *)(void *)(area + (size_t)page * PAGE);
    table[page] = words[0] = words[PAGE / 8 - 1] = value;
}

static void look(int page) {
    const uint64_t *words = (const uint64_t *)(const void *)(area + (size_t)page * PAGE);
    check(words[0] == table[page] && words[PAGE / 8 - 1] == table[page], "page %d holds %llu and %llu, expected %llu", page,
          (unsigned long long)words[0], (unsigned long long)words[PAGE / 8 - 1], (unsigned long long)table[page]);
}

/* One of the four blocks of 2 MiB is replaced by another one, which brings its page table along. */
static void move_block(int to, uint64_t value) {
    char *fresh = must(mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *aligned = (char *)(((uintptr_t)fresh + BLOCK - 1) / BLOCK * BLOCK);
    must(madvise(fresh, 2 * BLOCK, MADV_NOHUGEPAGE));
    char *target = area + (size_t)to * BLOCK;
    for (int i = 0; i < 512; i += 3) {
        uint64_t *words = (uint64_t *)(void *)(aligned + (size_t)i * PAGE);
        words[0] = words[PAGE / 8 - 1] = value;
    }
    must(mremap(aligned, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, target));
    for (int i = 0; i < 512; i++) table[to * 512 + i] = i % 3 ? 0 : value;
    if (aligned > fresh) must(munmap(fresh, (size_t)(aligned - fresh)));
    if (aligned < fresh + BLOCK) must(munmap(aligned + BLOCK, (size_t)(fresh + BLOCK - aligned)));
}

static void give_back(int first, int pages) {
    must(madvise(area + (size_t)first * PAGE, (size_t)pages * PAGE, MADV_DONTNEED));
    for (int i = 0; i < pages; i++) table[first + i] = 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char *around = must(mmap(NULL, PAGES * PAGE + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    area = (char *)(((uintptr_t)around + BLOCK - 1) / BLOCK * BLOCK);
    for (int i = 0; i < PAGES; i++) write_page(i, 1);
    ready();
    uint64_t random = 88172645463325252, count = 1;
    for (; !marked("go"); count++) {
        for (int i = 0; i < 16; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            write_page((int)(random % PAGES), count);
        }
        int page = (int)((random >> 20) % PAGES);
        if (count % 3 == 0) give_back(page, 1);
        if (count % 7 == 0) look(page);
        if (count % 50 == 0) move_block((int)((random >> 40) % 4), count);
        if (count % 90 == 0) give_back((int)((random >> 44) % 4) * 512, 512);
        sleep_ms(1);
    }
    if (sabotage()) area[5 * PAGE] ^= 1;
    for (int i = 0; i < PAGES; i++) look(i);
    return finish();
}
