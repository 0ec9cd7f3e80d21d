/* Memory that the kernel may drop (MAP_DROPPABLE, Linux 6.11), as C libraries have it for random numbers: it comes back as such, and empty, as
 * no two copies of a program may go on from the same state. */
#include "subject.h"
#include <sys/mman.h>

enum { LENGTH = 65536, DROPPABLE = 0x08 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char *pages = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, DROPPABLE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) skip("MAP_DROPPABLE: %s", strerror(errno));
    char before[512], after[512];
    vm_flags(pages, before, sizeof before);
    fill(pages, LENGTH, 1);
    pid_t child = must(fork());
    if (child == 0) {
        wait_go();
        finish_child();
    }
    ready();
    wait_go();
    if (sabotage()) must(madvise(pages, LENGTH, MADV_SEQUENTIAL));
    vm_flags(pages, after, sizeof after);
    check(strcmp(before, after) == 0, "it is \"%s\" and was \"%s\"", after, before);
    for (int at = 0; at < LENGTH; at += 4096) {
        static const char nothing[4096];
        static char wanted[LENGTH];
        fill(wanted, LENGTH, 1);
        int same = memcmp(pages + at, wanted + at, 4096) == 0 || memcmp(pages + at, nothing, 4096) == 0;
        check(same, "page %d has neither what was written nor zeros", at / 4096);
    }
    pages[0] = 1;
    check_equal(pages[0], 1);
    reap(child);
    return finish();
}
