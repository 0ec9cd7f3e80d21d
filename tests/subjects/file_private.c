/* Private file mappings: changed pages keep their content, unchanged ones go on following the file, and what lies
 * beyond its end gives SIGBUS. */
#include "subject.h"
#include <setjmp.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64 };

static sigjmp_buf back;
static void on_bus(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static int gives_bus(volatile char *address) {
    if (sigsetjmp(back, 1)) return 1;
    (void)*address;
    return 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    static unsigned char content[PAGES * PAGE];
    fill(content, sizeof content, 1);
    spew("data", content, sizeof content);
    spew("short", content, PAGE + 100);
    signal(SIGBUS, on_bus);

    int fd = must(open("data", O_RDONLY));
    char *map = must(mmap(NULL, sizeof content, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    char *offset = must(mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE, fd, 16 * PAGE));
    char *relro = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    fill(relro, PAGE, 2);
    must(mprotect(relro, 4 * PAGE, PROT_READ));
    must(close(fd));
    for (int i = 0; i < PAGES; i += 4) fill(map + i * PAGE, PAGE, 100 + (uint64_t)i);
    volatile char sink = map[PAGE];
    (void)sink;

    fd = must(open("short", O_RDONLY));
    char *beyond = must(mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    must(close(fd));
    beyond[10] = 'b';
    beyond[PAGE + 500] = 'e'; /* on the last page, after the end of the file */
    must(gives_bus(beyond + 2 * PAGE) ? 0 : -1);
    ready();
    wait_go();

    if (sabotage()) map[4 * PAGE] ^= 1;
    for (int i = 0; i < PAGES; i++)
        if (i % 4 == 0) check_filled(map + i * PAGE, PAGE, 100 + (uint64_t)i);
        else check(memcmp(map + i * PAGE, content + i * PAGE, PAGE) == 0, "page %d differs from the file", i);
    check(memcmp(offset, content + 16 * PAGE, 8 * PAGE) == 0, "the mapping at an offset differs from the file");
    check_filled(relro, PAGE, 2);
    char protection[5];
    protection_of(relro, protection);
    check(strcmp(protection, "r--p") == 0, "the read-only part is %s", protection);
    protection_of(relro + 4 * PAGE, protection);
    check(strcmp(protection, "rw-p") == 0, "the writable part is %s", protection);

    /* What others write now is seen in unchanged pages, and not in changed ones. */
    fd = must(open("data", O_WRONLY));
    must(pwrite(fd, "new", 3, 17 * PAGE));
    must(pwrite(fd, "new", 3, 20 * PAGE));
    must(close(fd));
    check(memcmp(offset + PAGE, "new", 3) == 0, "an unchanged page does not follow the file");
    check(memcmp(map + 17 * PAGE, "new", 3) == 0, "an unchanged page of a changed mapping does not follow the file");
    check_filled(map + 20 * PAGE, PAGE, 120);

    check_equal(beyond[10], 'b');
    check_equal(beyond[PAGE + 500], 'e');
    check(beyond[11] == (char)content[11], "the byte beside a changed one differs");
    check(gives_bus(beyond + 2 * PAGE), "no SIGBUS beyond the end of the file");
    map[PAGE] = 1; /* still private */
    char byte;
    fd = must(open("data", O_RDONLY));
    must(pread(fd, &byte, 1, PAGE));
    check_equal((unsigned char)byte, content[PAGE]);
    return finish();
}
