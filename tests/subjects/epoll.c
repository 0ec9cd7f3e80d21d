/* epoll: many descriptors with their events and data, edge and one-shot modes, nested sets, events that are pending. */
#include "subject.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* linux/eventpoll.h, Linux 6.9: struct epoll_params, EPIOCSPARAMS and EPIOCGPARAMS. */
struct busy {
    uint32_t microseconds;
    uint16_t budget;
    uint8_t prefer, padding;
};
#define SET_BUSY _IOW(0x8A, 0x01, struct busy)
#define GET_BUSY _IOR(0x8A, 0x02, struct busy)

enum { MANY = 200 };

static void add(int set, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    must(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static int collect(int set, struct epoll_event *events, int most) {
    int count;
    while ((count = epoll_wait(set, events, most, 0)) == -1 && errno == EINTR) {
    }
    return count;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int set = must(epoll_create1(EPOLL_CLOEXEC)), fds[MANY];
    for (int i = 0; i < MANY; i++) {
        fds[i] = must(eventfd(i % 10 == 0, EFD_NONBLOCK)); /* every tenth is ready */
        add(set, fds[i], EPOLLIN | (i % 3 == 1 ? EPOLLET : 0), 0xabcd00000000 + (uint64_t)i);
    }
    must(close(fds[7])); /* leaves the set by itself */

    struct epoll_event events[MANY + 8];
    int once_set = must(epoll_create1(0)), fired = must(eventfd(1, 0)), waiting = must(eventfd(0, 0));
    add(once_set, fired, EPOLLIN | EPOLLONESHOT, 1);
    add(once_set, waiting, EPOLLIN | EPOLLONESHOT, 2);
    must(collect(once_set, events, 8) == 1 ? 0 : -1); /* `fired` is used up */

    int outer = must(epoll_create1(0)), middle = must(epoll_create1(0)), inner = must(epoll_create1(0));
    int deep = must(eventfd(0, 0));
    add(outer, middle, EPOLLIN, 10);
    add(middle, inner, EPOLLIN, 11);
    add(inner, deep, EPOLLIN, 12);

    int shared = must(epoll_create1(0)), pipe_ends[2]; /* one set, waited for by parent and child */
    must(pipe(pipe_ends));
    add(shared, pipe_ends[0], EPOLLIN | EPOLLRDHUP, 20);
    int doubled = must(dup(pipe_ends[0])); /* the same open file, added under a second number */
    add(shared, doubled, EPOLLIN, 21);
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        wait_go();
        int count;
        while ((count = epoll_wait(shared, events, 8, -1)) == -1 && errno == EINTR) {
        }
        check_equal(count, 2);
        finish_child();
    }
    await_mark("child");
    struct busy busy = {.microseconds = 64, .budget = 8, .prefer = 1};
    int polls = ioctl(outer, SET_BUSY, &busy) == 0;
    ready();
    wait_go();

    if (sabotage()) must(epoll_ctl(set, EPOLL_CTL_DEL, fds[20], NULL));
    int count = collect(set, events, MANY);
    check_equal(count, MANY / 10);
    for (int i = 0; i < count; i++) {
        uint64_t number = events[i].data.u64 - 0xabcd00000000;
        check(number < MANY && number % 10 == 0 && events[i].events == EPOLLIN, "event %x for %llx", events[i].events,
              (unsigned long long)events[i].data.u64);
    }
    /* Edge-triggered ones have been reported and are silent now; new writes are seen. */
    int edge = 0;
    for (int i = 0; i < MANY; i += 10) edge += i % 3 == 1;
    check_equal(collect(set, events, MANY), MANY / 10 - edge);
    must(eventfd_write(fds[1], 1));
    check_equal(collect(set, events, MANY), MANY / 10 - edge + 1);
    check_equal(fcntl(set, F_GETFD), FD_CLOEXEC);

    check_equal(collect(once_set, events, 8), 0);
    must(eventfd_write(waiting, 1));
    check_equal(collect(once_set, events, 8), 1);
    check_equal(events[0].data.u64, 2);
    check_equal(collect(once_set, events, 8), 0);
    struct epoll_event again = {.events = EPOLLIN, .data.u64 = 3};
    check_equal(epoll_ctl(once_set, EPOLL_CTL_MOD, fired, &again), 0);
    check_equal(collect(once_set, events, 8), 1);

    check_equal(collect(outer, events, 8), 0);
    must(eventfd_write(deep, 1));
    check_equal(collect(outer, events, 8), 1);
    check_equal(events[0].data.u64, 10);
    check_equal(collect(inner, events, 8), 1);
    check_equal(events[0].data.u64, 12);

    struct busy now = {0};
    check_equal(ioctl(outer, GET_BUSY, &now) == 0, polls);
    check(memcmp(&now, &busy, sizeof now) == 0 || !polls, "it polls busily for %u us, not %u", now.microseconds, busy.microseconds);
    check_equal(write(pipe_ends[1], "x", 1), 1);
    reap(child);
    return finish();
}
