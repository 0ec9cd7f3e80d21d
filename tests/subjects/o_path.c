/* Descriptors opened with O_PATH: of a file, a directory, a symbolic link, a FIFO, something nobody may read. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    spew("file", "content", 7), spew("secret", "", 0);
    must(chmod("secret", 0)), must(mkdir("dir", 0777)), spew("dir/inside", "in", 2);
    must(symlink("file", "link")), must(mkfifo("fifo", 0666));
    static const char *const names[] = {"file", "secret", "dir", "link", "fifo"};
    int fds[COUNT(names)];
    ino_t inodes[COUNT(names)];
    struct stat stat;
    for (size_t i = 0; i < COUNT(names); i++) {
        fds[i] = must(open(names[i], O_PATH | O_NOFOLLOW | (i % 2 ? O_CLOEXEC : 0)));
        must(fstat(fds[i], &stat));
        inodes[i] = stat.st_ino;
    }
    ready();
    wait_go();

    if (sabotage()) must(dup2(fds[0], fds[2]));
    for (size_t i = 0; i < COUNT(names); i++) {
        check(fstat(fds[i], &stat) == 0 && stat.st_ino == inodes[i], "%s is another inode", names[i]);
        check(fcntl(fds[i], F_GETFL) & O_PATH, "%s is not O_PATH", names[i]);
        check_equal(fcntl(fds[i], F_GETFD), i % 2 ? FD_CLOEXEC : 0);
        char byte;
        check(read(fds[i], &byte, 1) == -1 && errno == EBADF, "%s can be read", names[i]);
    }
    char target[64] = "";
    check_equal(readlinkat(fds[3], "", target, sizeof target - 1), 4);
    check(strcmp(target, "file") == 0, "the link leads to %s", target);
    int inside = openat(fds[2], "inside", O_RDONLY);
    check(inside >= 0, "openat: %s", strerror(errno));
    char path[64], text[16];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fds[0]);
    check_equal(slurp(path, text, sizeof text), 7);
    return finish();
}
