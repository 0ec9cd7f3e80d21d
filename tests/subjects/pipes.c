/* Pipes: data in flight, changed capacity, ends in different processes, flags, and ends whose other end is gone. */
#include "subject.h"
#include <sys/ioctl.h>

static int held(int fd) {
    int count = -1;
    must(ioctl(fd, FIONREAD, &count));
    return count;
}

static void drain(int fd, size_t length, uint64_t seed) {
    char *data = must(malloc(length));
    size_t got = 0;
    while (got < length) {
        ssize_t n = read(fd, data + got, length - got);
        if (!check(n > 0, "read of %zu bytes after %zu gave %zd: %s", length, got, n, strerror(errno))) return;
        got += (size_t)n;
    }
    check_filled(data, length, seed);
    free(data);
}

static void put(int fd, size_t length, uint64_t seed) {
    char *data = must(malloc(length));
    fill(data, length, seed);
    must(write(fd, data, length) == (ssize_t)length ? 0 : -1);
    free(data);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    int some[2], full[2], big[2], small[2], empty[2], no_reader[2], no_writer[2], half[2], between[2], back[2];
    int *all[] = {some, full, big, small, empty, no_reader, no_writer, half, between, back};
    for (size_t i = 0; i < COUNT(all); i++) must(pipe(all[i]));

    put(some[1], 12345, 1);
    must(fcntl(full[1], F_SETFL, O_NONBLOCK));
    size_t filled = 0;
    for (char byte = 'f'; write(full[1], &byte, 1) == 1;) filled++;
    must(fcntl(big[1], F_SETPIPE_SZ, 1 << 20));
    put(big[1], 900000, 2);
    int small_size = must(fcntl(small[1], F_SETPIPE_SZ, 4096));
    must(fcntl(empty[0], F_SETFL, O_NONBLOCK));
    must(fcntl(empty[0], F_SETFD, FD_CLOEXEC));
    must(close(no_reader[0]));
    put(no_writer[1], 100, 3);
    must(close(no_writer[1]));
    put(half[1], 5000, 4);
    char skipped[1000];
    must(read(half[0], skipped, sizeof skipped)); /* the first buffer is partly consumed */
    char rest[4000];
    char whole[5000];
    fill(whole, sizeof whole, 4);

    pid_t child = must(fork());
    if (child == 0) { /* reads from `between`, which only the parent writes to, and answers through `back` */
        must(close(between[1]));
        must(close(back[0]));
        mark("child");
        wait_go();
        drain(between[0], 3000, 5);
        drain(between[0], 3000, 6);
        put(back[1], 2000, 7);
        char byte;
        check_equal(read(between[0], &byte, 1), 0); /* the parent closes */
        finish_child();
    }
    must(close(between[0]));
    must(close(back[1]));
    await_mark("child");
    put(between[1], 3000, 5);
    /* As runc gives the standard output of a container to its user; to others only root may. */
    uid_t given_uid = geteuid() == 0 ? 1234 : geteuid();
    gid_t given_gid = geteuid() == 0 ? 1235 : getegid();
    must(fchown(small[0], given_uid, given_gid));
    must(fchmod(small[0], 0640));
    ready();
    wait_go();
    put(between[1], 3000, 6);

    if (sabotage()) must(fcntl(small[1], F_SETPIPE_SZ, 16384));
    check_equal(held(some[0]), 12345);
    drain(some[0], 12345, 1);
    check_equal(held(full[0]), (long)filled);
    check(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe takes more");
    check_equal(held(big[0]), 900000);
    check_equal(fcntl(big[1], F_GETPIPE_SZ), 1 << 20);
    drain(big[0], 900000, 2);
    check_equal(fcntl(small[1], F_GETPIPE_SZ), small_size);
    check_equal(fcntl(empty[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    check_equal(fcntl(empty[1], F_GETFL) & O_NONBLOCK, 0);
    check_equal(fcntl(empty[0], F_GETFD), FD_CLOEXEC);
    check(read(empty[0], skipped, 1) == -1 && errno == EAGAIN, "the empty pipe is not empty");
    check(write(no_reader[1], "x", 1) == -1 && errno == EPIPE, "the pipe without a reader can be written to");
    drain(no_writer[0], 100, 3);
    check_equal(read(no_writer[0], skipped, 1), 0);
    check_equal(held(half[0]), 4000);
    check_equal(read(half[0], rest, sizeof rest), 4000);
    check(memcmp(rest, whole + 1000, 4000) == 0, "the partly read pipe holds other bytes");
    drain(back[0], 2000, 7);
    struct stat whose;
    must(fstat(small[0], &whose));
    check_equal(whose.st_mode & 07777, 0640);
    check(whose.st_uid == given_uid && whose.st_gid == given_gid, "a pipe is %d:%d's, not %d:%d's", (int)whose.st_uid,
          (int)whose.st_gid, (int)given_uid, (int)given_gid);
    must(close(between[1]));
    reap(child);
    return finish();
}
