/* Locked memory, and memory that is locked page by page as it is touched. */
#include "subject.h"
#include <sys/mman.h>

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
enum { PAGE = 4096, PAGES = 4 };

static unsigned char *map(int pages) {
    /* With inaccessible neighbours, so that mappings do not merge. */
    unsigned char *around = must(mmap(NULL, (size_t)(pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    must(mprotect(around + PAGE, (size_t)pages * PAGE, PROT_READ | PROT_WRITE));
    return around + PAGE;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    unsigned char *locked = map(PAGES), *on_fault = map(1024), *free_again = map(PAGES);
    fill(locked, PAGES * PAGE, 1);
    fill(on_fault, PAGE, 2);
    if (mlock(locked, PAGES * PAGE) != 0) skip("mlock: %s", strerror(errno));
    int has_on_fault = syscall(SYS_mlock2, on_fault, 1024 * PAGE, MLOCK_ONFAULT) == 0;
    must(mlock(free_again, PAGES * PAGE));
    must(munlock(free_again, PAGES * PAGE));
    unsigned char *all[] = {locked, on_fault, free_again};
    char flags[COUNT(all)][256], flags_now[256], amount[64];
    for (size_t i = 0; i < COUNT(all); i++) vm_flags(all[i], flags[i], sizeof flags[i]);
    ready();
    wait_go();

    if (sabotage()) munlock(locked, PAGES * PAGE);
    check_filled(locked, PAGES * PAGE, 1);
    check_filled(on_fault, PAGE, 2);
    for (size_t i = 0; i < COUNT(all); i++) {
        vm_flags(all[i], flags_now, sizeof flags_now);
        check(strcmp(flags[i], flags_now) == 0, "mapping %zu: flags %s became %s", i, flags[i], flags_now);
    }
    smaps_field(locked, "Locked", amount, sizeof amount);
    check(atoi(amount) == PAGES * PAGE / 1024, "locked: %s", amount);
    if (has_on_fault) {
        smaps_field(on_fault, "Rss", amount, sizeof amount);
        check(atoi(amount) < 512 * PAGE / 1024, "memory to be locked when touched is there already: %s", amount);
    }
    return finish();
}
