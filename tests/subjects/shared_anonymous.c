/* Shared anonymous memory between processes, at the same and at other addresses, in part, and grown. */
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64 };

static unsigned char *map(size_t length) {
    return must(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    unsigned char *same = map(PAGES * PAGE), *moved = map(PAGES * PAGE), *part = map(PAGES * PAGE), *only_child = map(PAGE);
    unsigned char *twice = map(4 * PAGE);
    unsigned char *twin = must(mremap(twice, 0, 4 * PAGE, MREMAP_MAYMOVE)); /* the same pages, mapped again */
    fill(same, PAGES * PAGE, 1);
    fill(moved, PAGES * PAGE, 2);
    fill(part, PAGES * PAGE, 3);
    memset(only_child, 9, PAGE);

    pid_t child = must(fork());
    if (child == 0) {
        unsigned char *room = must(mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        unsigned char *elsewhere = must(mremap(moved, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room));
        must(munmap(part, 32 * PAGE)); /* keeps the second half */
        must(mprotect(same, PAGE, PROT_READ));
        mark("child");
        await_mark("parent-wrote");
        check_equal(same[10], 101);
        check_equal(elsewhere[20], 102);
        check_equal(part[40 * PAGE], 103);
        check_equal(twin[1], 104);
        check_equal(only_child[5], 9);
        unsigned char resident;
        check(mincore(part, PAGE, &resident) == -1 && errno == ENOMEM, "the unmapped part is there again");
        same[2 * PAGE] = 201;
        elsewhere[3 * PAGE] = 202;
        part[50 * PAGE] = 203;
        mark("child-wrote");
        finish_child();
    }
    must(munmap(only_child, PAGE)); /* from now on the child's alone */
    await_mark("child");
    ready();
    wait_go();

    check_filled(same, PAGES * PAGE, 1);
    check_filled(moved, PAGES * PAGE, 2);
    check_filled(part, PAGES * PAGE, 3);
    same[10] = 101;
    moved[20] = 102;
    part[40 * PAGE] = 103;
    if (!sabotage()) twice[1] = 104;
    check_equal(twin[1], 104);
    mark("parent-wrote");
    await_mark("child-wrote");
    check_equal(same[2 * PAGE], 201);
    check_equal(moved[3 * PAGE], 202);
    check_equal(part[50 * PAGE], 203);
    reap(child);
    return finish();
}
