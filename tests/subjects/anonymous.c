/* Private anonymous memory: contents, protections, holes, discarded pages, and the advice that smaps shows. */
#include "subject.h"
#include <sys/mman.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
enum { PAGE = 4096, BIG = 8 << 20 };

static char *map(size_t length, int protection) {
    return must(mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char *big = map(BIG, PROT_READ | PROT_WRITE);
    fill(big, BIG, 1);

    char *sparse = map(BIG, PROT_READ | PROT_WRITE); /* every 16th page written, the rest never touched */
    for (int i = 0; i < BIG; i += 16 * PAGE) fill(sparse + i, PAGE, (uint64_t)i);

    char *read_only = map(16 * PAGE, PROT_READ | PROT_WRITE);
    fill(read_only, 16 * PAGE, 2);
    must(mprotect(read_only, 16 * PAGE, PROT_READ));

    char *hidden = map(16 * PAGE, PROT_READ | PROT_WRITE); /* content behind PROT_NONE */
    fill(hidden, 16 * PAGE, 3);
    must(mprotect(hidden, 16 * PAGE, PROT_NONE));

    char *code = map(PAGE, PROT_READ | PROT_WRITE); /* mov $42, %eax; ret */
    memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6);
    must(mprotect(code, PAGE, PROT_READ | PROT_EXEC));

    char *holed = map(32 * PAGE, PROT_READ | PROT_WRITE);
    fill(holed, 32 * PAGE, 4);

    char *discarded = map(32 * PAGE, PROT_READ | PROT_WRITE);
    fill(discarded, 32 * PAGE, 5);
    must(madvise(discarded + 8 * PAGE, 8 * PAGE, MADV_DONTNEED));

    char *zeroes = map(64 * PAGE, PROT_READ | PROT_WRITE); /* written, with zeroes, and read only */
    memset(zeroes, 0, 32 * PAGE);
    volatile char sink = zeroes[40 * PAGE];
    (void)sink;

    static const struct {
        int advice;
        const char *name;
    } advices[] = {{MADV_DONTFORK, "DONTFORK"},   {MADV_WIPEONFORK, "WIPEONFORK"}, {MADV_DONTDUMP, "DONTDUMP"},
                   {MADV_HUGEPAGE, "HUGEPAGE"},   {MADV_NOHUGEPAGE, "NOHUGEPAGE"}, {MADV_MERGEABLE, "MERGEABLE"},
                   {MADV_SEQUENTIAL, "SEQUENTIAL"}, {MADV_RANDOM, "RANDOM"}};
    char *advised[COUNT(advices)], flags[COUNT(advices)][256];
    for (size_t i = 0; i < COUNT(advices); i++) {
        char *around = map(6 * PAGE, PROT_NONE); /* inaccessible pages keep neighbours from merging */
        advised[i] = around + PAGE;
        must(mprotect(advised[i], 4 * PAGE, PROT_READ | PROT_WRITE));
        if (madvise(advised[i], 4 * PAGE, advices[i].advice) != 0) { /* not in this kernel's configuration */
            advised[i] = NULL;
            continue;
        }
        fill(advised[i], 4 * PAGE, 100 + i);
        vm_flags(advised[i], flags[i], sizeof flags[i]);
    }
    must(munmap(holed + 8 * PAGE, 8 * PAGE)); /* last, so that nothing else takes its place */
    ready();
    wait_go();

    for (int i = 8; i < 16; i++) {
        unsigned char resident;
        check(mincore(holed + i * PAGE, PAGE, &resident) == -1 && errno == ENOMEM, "page %d of the hole is mapped", i);
    }
    if (sabotage()) {
        big[BIG - 1] ^= 1;
        discarded[9 * PAGE] = 1;
        must(madvise(advised[1], 4 * PAGE, MADV_KEEPONFORK));
    }
    check_filled(big, BIG, 1);
    for (int i = 0; i < BIG; i += 16 * PAGE) {
        check_filled(sparse + i, PAGE, (uint64_t)i);
        check_equal(sparse[i + 5 * PAGE], 0);
    }
    char protection[5];
    check_filled(read_only, 16 * PAGE, 2);
    protection_of(read_only, protection);
    check(strcmp(protection, "r--p") == 0, "read-only memory is %s", protection);
    protection_of(hidden, protection);
    check(strcmp(protection, "---p") == 0, "hidden memory is %s", protection);
    must(mprotect(hidden, 16 * PAGE, PROT_READ));
    check_filled(hidden, 16 * PAGE, 3);
    check_equal(((int (*)(void))(void *)code)(), 42);

    char *expected = map(32 * PAGE, PROT_READ | PROT_WRITE);
    fill(expected, 32 * PAGE, 4);
    check(memcmp(holed, expected, 8 * PAGE) == 0 && memcmp(holed + 16 * PAGE, expected + 16 * PAGE, 16 * PAGE) == 0,
          "memory around the hole differs");
    fill(expected, 32 * PAGE, 5);
    memset(expected + 8 * PAGE, 0, 8 * PAGE);
    check(memcmp(discarded, expected, 32 * PAGE) == 0, "discarded pages or their neighbours differ");
    memset(expected, 0, 32 * PAGE);
    check(memcmp(zeroes, expected, 32 * PAGE) == 0 && memcmp(zeroes + 32 * PAGE, expected, 32 * PAGE) == 0, "zeroes differ");

    for (size_t i = 0; i < COUNT(advices); i++) {
        if (!advised[i]) continue;
        char flags_now[256];
        vm_flags(advised[i], flags_now, sizeof flags_now);
        check(strcmp(flags[i], flags_now) == 0, "MADV_%s: flags %s became %s", advices[i].name, flags[i], flags_now);
        check_filled(advised[i], 4 * PAGE, 100 + i);
    }
    pid_t child = must(fork());
    if (child == 0) { /* what the advice promises for children */
        unsigned char resident;
        check(mincore(advised[0], PAGE, &resident) == -1 && errno == ENOMEM, "DONTFORK memory is in the child");
        for (int i = 0; i < 4 * PAGE; i++)
            if (advised[1][i]) {
                check(0, "WIPEONFORK memory is not empty in the child");
                break;
            }
        finish_child();
    }
    reap(child);
    return finish();
}
