/* Huge pages by MAP_HUGETLB, private and shared between processes. */
#include "subject.h"
#include <sys/mman.h>

enum { HUGE = 2 << 20, PAGES = 2 };
static const char *const POOL = "/proc/sys/vm/nr_hugepages";

/* Sees to it that enough huge pages are free; the pool keeps its size after us, since the restored job needs it too. */
static void reserve_pages(void) {
    char text[64];
    field_of("/proc/meminfo", "HugePages_Free", text, sizeof text);
    if (atoi(text) >= 4 * PAGES) return;
    slurp(POOL, text, sizeof text);
    int fd = open(POOL, O_WRONLY);
    if (fd < 0) skip("no huge pages are reserved, and only root can reserve them");
    int length = snprintf(text, sizeof text, "%d", atoi(text) + 4 * PAGES);
    if (write(fd, text, (size_t)length) != length) skip("huge pages cannot be reserved: %s", strerror(errno));
    close(fd);
    field_of("/proc/meminfo", "HugePages_Free", text, sizeof text);
    if (atoi(text) < 2 * PAGES) skip("memory is too fragmented for huge pages");
}

static unsigned char *map(int sharing) {
    unsigned char *memory = mmap(NULL, PAGES * HUGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (memory == MAP_FAILED) skip("no huge pages: %s", strerror(errno));
    return memory;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    reserve_pages();
    unsigned char *private = map(MAP_PRIVATE), *shared = map(MAP_SHARED);
    fill(private, HUGE, 1); /* the second page is never touched */
    fill(shared, PAGES * HUGE, 2);
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        await_mark("parent-wrote");
        check_equal(shared[3], 33);
        shared[HUGE + 4] = 44;
        finish_child();
    }
    char size[64], size_now[64], flags[256], flags_now[256];
    smaps_field(private, "KernelPageSize", size, sizeof size);
    vm_flags(private, flags, sizeof flags);
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) private[HUGE - 1] ^= 1;
    check_filled(private, HUGE, 1);
    check_equal(private[HUGE + 5], 0);
    check_filled(shared, PAGES * HUGE, 2);
    smaps_field(private, "KernelPageSize", size_now, sizeof size_now);
    check(strcmp(size, size_now) == 0, "the page size was %s and is %s", size, size_now);
    vm_flags(private, flags_now, sizeof flags_now);
    check(strcmp(flags, flags_now) == 0, "flags %s became %s", flags, flags_now);
    shared[3] = 33;
    mark("parent-wrote");
    reap(child);
    check_equal(shared[HUGE + 4], 44);
    return finish();
}
