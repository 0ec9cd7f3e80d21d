/* A file mapped shared by two processes: both, and readers of the file, go on seeing each other's writes. */
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 16 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int fd = must(open("data", O_RDWR | O_CREAT | O_TRUNC, 0600));
    must(ftruncate(fd, PAGES * PAGE));
    unsigned char *map = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    fill(map, PAGES * PAGE, 1);
    unsigned char *part = must(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 3 * PAGE)); /* of a writable descriptor */
    int read_only = must(open("data", O_RDONLY));
    unsigned char *reader = must(mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, read_only, 0));
    must(close(fd));

    pid_t child = must(fork());
    if (child == 0) {
        int own = must(open("data", O_RDWR));
        unsigned char *mine = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0));
        must(close(own));
        mark("child");
        await_mark("parent-wrote");
        check_equal(mine[5], 55);
        check_equal(map[5], 55);
        mine[6 * PAGE] = 66;
        mark("child-wrote");
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    check_filled(map, PAGES * PAGE, 1);
    check_filled(reader, PAGES * PAGE, 1);
    if (sabotage()) map = must(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, read_only, 0));
    map[5] = 55;
    map[3 * PAGE + 1] = 31;
    mark("parent-wrote");
    await_mark("child-wrote");
    check_equal(map[6 * PAGE], 66);
    check_equal(reader[6 * PAGE], 66);
    check_equal(part[1], 31);
    unsigned char byte;
    must(pread(read_only, &byte, 1, 5));
    check_equal(byte, 55);
    check(mprotect(part, PAGE, PROT_READ | PROT_WRITE) == 0, "the part can no longer be made writable: %s", strerror(errno));
    check(mprotect(reader, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "the reader can be made writable");
    reap(child);
    return finish();
}
