/* Directories: as descriptors to start paths from, and half read. */
#include "subject.h"
#include <dirent.h>

enum { FILES = 500 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    must(mkdir("full", 0755));
    must(mkdir("other", 0755));
    char name[64];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "full/%d", i);
        mark(name);
    }
    spew("other/file", "hello", 5);
    int other = must(open("other", O_RDONLY | O_DIRECTORY));
    int path_only = must(open("other", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int raw = must(open("full", O_RDONLY | O_DIRECTORY));
    static char seen[FILES];
    int count = 0;
    char buffer[1024];
    /* getdents directly: what libc has read ahead would hide where the kernel stands. */
    for (int rounds = 0;; rounds++) {
        long length = must(syscall(SYS_getdents64, raw, buffer, sizeof buffer));
        if (length == 0) break;
        for (long at = 0; at < length;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            at += entry->d_reclen;
            if (entry->d_name[0] == '.') continue;
            int number = atoi(entry->d_name);
            check(!seen[number], "%s was read twice", entry->d_name);
            seen[number] = 1;
            count++;
        }
        if (rounds == 3) {
            ready();
            wait_go();
            if (sabotage()) must(lseek(raw, 0, SEEK_SET));
        }
    }
    check_equal(count, FILES);
    int file = openat(other, "file", O_RDONLY);
    check(file >= 0, "openat: %s", strerror(errno));
    check_equal(read(file, buffer, 10), 5);
    check_equal(fcntl(path_only, F_GETFD), FD_CLOEXEC);
    check_equal(fchdir(other), 0);
    check(access("file", F_OK) == 0, "fchdir led elsewhere");
    return finish();
}
