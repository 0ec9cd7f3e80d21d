/* Event descriptors: count, semaphore mode, flags, shared between processes. */
#include "subject.h"
#include <sys/eventfd.h>

static uint64_t take(int fd) {
    uint64_t value = 0;
    check(read(fd, &value, 8) == 8, "read: %s", strerror(errno));
    return value;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int counter = must(eventfd(5, EFD_NONBLOCK)), semaphore = must(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
    int empty = must(eventfd(0, 0)), brimful = must(eventfd(0, EFD_NONBLOCK));
    must(eventfd_write(brimful, 0xfffffffffffffffe));
    must(eventfd_write(counter, 1ull << 40));
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        wait_go();
        check_equal(take(empty), 77); /* blocks until the parent writes */
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(eventfd_write(semaphore, 1));
    uint64_t one = 1;
    check_equal(take(counter), (1ull << 40) + 5);
    check(read(counter, &one, 8) == -1 && errno == EAGAIN, "the counter is not empty");
    for (int i = 0; i < 3; i++) check_equal(take(semaphore), 1);
    check(read(semaphore, &one, 8) == -1 && errno == EAGAIN, "the semaphore is not empty");
    check_equal(fcntl(semaphore, F_GETFD), FD_CLOEXEC);
    check(write(brimful, &one, 8) == -1 && errno == EAGAIN, "the full one takes more");
    check_equal(fcntl(empty, F_GETFL) & O_NONBLOCK, 0);
    must(eventfd_write(empty, 77));
    reap(child);
    return finish();
}
