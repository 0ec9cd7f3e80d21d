/* 1,000 open files, each with its own offset. */
#include "subject.h"
#include <sys/resource.h>

enum { FILES = 1000 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit));
    if (limit.rlim_max < FILES + 50) skip("no more than %lu descriptors are allowed", (unsigned long)limit.rlim_max);
    if (limit.rlim_cur < FILES + 50) limit.rlim_cur = FILES + 50;
    must(setrlimit(RLIMIT_NOFILE, &limit));
    static int fds[FILES];
    char name[32], byte;
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "file-%d", i);
        fds[i] = must(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
        must(write(fds[i], name, strlen(name)));
        must(lseek(fds[i], i % 5, SEEK_SET));
    }
    ready();
    wait_go();
    if (sabotage()) must(dup2(fds[10], fds[11]));
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "file-%d", i);
        check_equal(lseek(fds[i], 0, SEEK_CUR), i % 5);
        check(read(fds[i], &byte, 1) == 1 && byte == name[i % 5], "file %d gives another byte", i);
        struct stat by_number, by_name;
        must(fstat(fds[i], &by_number));
        must(stat(name, &by_name));
        check(by_number.st_ino == by_name.st_ino, "descriptor %d is another file", fds[i]);
    }
    return finish();
}
