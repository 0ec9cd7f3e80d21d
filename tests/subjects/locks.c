/* File locks: flock, those of processes and of open files, a lease; one that a child waits for. */
#include "subject.h"
#include <sys/file.h>

static struct flock record(int type, off_t start, off_t length) {
    return (struct flock){.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static int lock(int fd, int command, int type, off_t start, off_t length) {
    struct flock lock_ = record(type, start, length);
    return fcntl(fd, command, &lock_);
}

/* The type of a lock that stands in the way of a write lock of bytes by another open file: F_UNLCK for none. */
static int in_the_way(const char *name, off_t start, off_t length) {
    int fd = must(open(name, O_RDWR));
    struct flock lock_ = record(F_WRLCK, start, length);
    must(fcntl(fd, F_OFD_GETLK, &lock_));
    /* Closing it would drop the process's own locks on the file: it stays open. */
    return lock_.l_type;
}

static int flocked(const char *name, int how) {
    int fd = must(open(name, O_RDWR));
    int result = flock(fd, how | LOCK_NB);
    close(fd);
    return result != 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    static const char *const names[] = {"whole", "shared", "posix", "ofd", "leased", "waited"};
    for (size_t i = 0; i < COUNT(names); i++) spew(names[i], "0123456789", 10);
    int whole = must(open("whole", O_RDONLY)), shared = must(open("shared", O_RDWR));
    int posix = must(open("posix", O_RDWR)), ofd = must(open("ofd", O_RDWR)), waited = must(open("waited", O_RDWR));
    int leased = must(open("leased", O_RDONLY));
    must(flock(whole, LOCK_EX)), must(flock(shared, LOCK_SH));
    must(lock(posix, F_SETLK, F_WRLCK, 10, 5)), must(lock(posix, F_SETLK, F_RDLCK, 100, 0));
    must(lock(ofd, F_OFD_SETLK, F_WRLCK, 0, 3)), must(lock(ofd, F_OFD_SETLK, F_RDLCK, 5, 3));
    must(lock(waited, F_SETLK, F_WRLCK, 0, 0));
    signal(SIGIO, SIG_IGN);
    must(fcntl(leased, F_SETLEASE, F_RDLCK));
    pid_t child = must(fork());
    if (child == 0) {
        must(lock(posix, F_SETLK, F_WRLCK, 50, 1));
        mark("child");
        check_equal(lock(waited, F_SETLKW, F_WRLCK, 0, 0), 0); /* until the parent lets go */
        check(marked("released"), "the lock was given too early");
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(lock(posix, F_SETLK, F_UNLCK, 10, 5));
    check(flocked("whole", LOCK_SH), "the exclusive lock is not held");
    check(flocked("shared", LOCK_EX), "the shared lock is not held");
    check(!flocked("shared", LOCK_SH), "the shared lock is exclusive");
    check_equal(in_the_way("posix", 10, 5), F_WRLCK);
    check_equal(in_the_way("posix", 15, 30), F_UNLCK);
    check_equal(in_the_way("posix", 50, 1), F_WRLCK);
    check_equal(in_the_way("posix", 51, 49), F_UNLCK);
    check_equal(in_the_way("posix", 1 << 20, 5), F_RDLCK);
    struct flock lock_ = record(F_WRLCK, 50, 1);
    must(fcntl(posix, F_GETLK, &lock_));
    check_equal(lock_.l_pid, child);
    check_equal(in_the_way("ofd", 0, 3), F_WRLCK);
    check_equal(in_the_way("ofd", 3, 2), F_UNLCK);
    check_equal(in_the_way("ofd", 5, 3), F_RDLCK);
    check_equal(in_the_way("ofd", 8, 100), F_UNLCK);
    check_equal(fcntl(leased, F_GETLEASE), F_RDLCK);
    sleep_ms(20);
    mark("released");
    must(lock(waited, F_SETLK, F_UNLCK, 0, 0));
    reap(child);
    return finish();
}
