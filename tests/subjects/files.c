/* Regular files: offsets, flags, close-on-exec, numbers with gaps, and which descriptors share an open file. */
#include "subject.h"
#include <sys/resource.h>

static off_t at(int fd) { return lseek(fd, 0, SEEK_CUR); }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    static char content[10000];
    fill(content, sizeof content, 1);
    spew("data", content, sizeof content);
    must(mkdir("sub", 0755));
    spew("sub/with space\nand newline", content, 100);

    static const int flags[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_APPEND, O_RDONLY | O_NONBLOCK, O_RDWR | O_CLOEXEC,
                                O_WRONLY | O_SYNC, O_RDWR | O_DSYNC, O_RDONLY | O_NOATIME, O_RDWR | O_LARGEFILE};
    int fds[COUNT(flags)], status[COUNT(flags)], descriptor[COUNT(flags)];
    for (size_t i = 0; i < COUNT(flags); i++) {
        fds[i] = must(open("data", flags[i]));
        must(lseek(fds[i], 100 * (off_t)i, SEEK_SET));
    }
    /* Flags set later, numbers far apart. */
    must(fcntl(fds[2], F_SETFL, O_NONBLOCK | O_APPEND));
    must(fcntl(fds[0], F_SETFD, FD_CLOEXEC));
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit));
    int high = limit.rlim_cur > 1000 && limit.rlim_cur < 1 << 20 ? (int)limit.rlim_cur - 1 : 999;
    must(dup2(fds[0], high));
    must(dup3(fds[0], 500, O_CLOEXEC));
    int apart = must(open("data", O_RDONLY)); /* the same file, opened on its own */
    must(lseek(apart, 42, SEEK_SET));
    int odd = must(open("sub/with space\nand newline", O_RDONLY));
    int beyond = must(open("data", O_RDONLY));
    must(lseek(beyond, 1 << 30, SEEK_SET));
    must(close(fds[4])); /* a gap */
    for (size_t i = 0; i < COUNT(flags); i++) {
        status[i] = fcntl(fds[i], F_GETFL);
        descriptor[i] = fcntl(fds[i], F_GETFD);
    }
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        wait_go();
        int own = must(open("data", O_RDONLY));
        must(close(own));
        check_equal(at(fds[2]), 200);
        must(lseek(fds[1], 7777, SEEK_SET)); /* seen by the parent, since the open file is shared */
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) {
        must(lseek(apart, 1, SEEK_CUR));
        must(fcntl(fds[6], F_SETFD, FD_CLOEXEC));
    }
    check_equal(fcntl(fds[4], F_GETFD), -1);
    for (size_t i = 0; i < COUNT(flags); i++) {
        if (i == 4) continue;
        check_equal(fcntl(fds[i], F_GETFL), status[i]);
        check_equal(fcntl(fds[i], F_GETFD), descriptor[i]);
        if (i != 1) check_equal(at(fds[i]), 100 * (off_t)i);
    }
    reap(child);
    check_equal(at(fds[1]), 7777);
    check_equal(fcntl(high, F_GETFD), 0);
    check_equal(fcntl(500, F_GETFD), FD_CLOEXEC);
    check_equal(lseek(500, 11, SEEK_SET), 11);
    check_equal(at(fds[0]), 11);
    check_equal(at(high), 11);
    check_equal(at(apart), 42);
    check_equal(at(beyond), 1 << 30);
    char buffer[100];
    check_equal(read(apart, buffer, 10), 10);
    check(memcmp(buffer, content + 42, 10) == 0, "other bytes at offset 42");
    check_equal(read(odd, buffer, 100), 100);
    check(memcmp(buffer, content, 100) == 0, "other bytes in the file with the odd name");
    check_equal(write(fds[3], "end", 3), 3); /* appends */
    check_equal(at(fds[3]), (off_t)sizeof content + 3);
    check(write(fds[0], "x", 1) == -1 && errno == EBADF, "a read-only descriptor can be written to");
    check(read(fds[1], buffer, 1) == -1 && errno == EBADF, "a write-only descriptor can be read");
    return finish();
}
