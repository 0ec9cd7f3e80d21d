/* inotify: watches of files and directories under their numbers, with gaps; no event of our own making. */
#include "subject.h"
#include <sys/inotify.h>

static struct inotify_event *next(int fd) {
    static char buffer[4096] __attribute__((aligned(8)));
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < (ssize_t)sizeof(struct inotify_event)) return NULL;
    return (struct inotify_event *)buffer;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    must(mkdir("dir", 0777)), must(mkdir("dir/sub", 0777));
    spew("dir/file", "1", 1), spew("lone", "1", 1), spew("other", "1", 1), spew("once", "1", 1);
    int fd = must(inotify_init1(IN_NONBLOCK)), empty = must(inotify_init1(IN_CLOEXEC));
    int dir = must(inotify_add_watch(fd, "dir", IN_CREATE | IN_DELETE | IN_OPEN));
    for (int i = 0; i < 250; i++) must(inotify_rm_watch(fd, must(inotify_add_watch(fd, "other", IN_MODIFY))));
    int lone = must(inotify_add_watch(fd, "lone", IN_MODIFY | IN_ATTRIB));
    int once = must(inotify_add_watch(fd, "once", IN_ONESHOT | IN_MODIFY));
    int held = must(open("dir/file", O_RDWR));
    char drain[65536];
    while (read(fd, drain, sizeof drain) > 0) {
    }
    ready();
    wait_go();

    if (sabotage()) must(inotify_rm_watch(fd, lone));
    struct inotify_event *event = next(fd);
    check(event == NULL, "an event of watch %d, mask 0x%x came by itself", event ? event->wd : 0, event ? event->mask : 0);
    spew("dir/new", "1", 1);
    event = next(fd);
    if (check(event != NULL, "no event of a new file: %s", strerror(errno))) {
        check_equal(event->wd, dir);
        check_equal(event->mask, IN_CREATE);
        check(strcmp(event->name, "new") == 0, "the new file is called %s", event->name);
    }
    while (next(fd)) {
    }
    check_equal(chmod("lone", 0600), 0);
    event = next(fd);
    if (check(event != NULL, "no event of new permissions")) {
        check_equal(event->wd, lone);
        check_equal(event->mask, IN_ATTRIB);
    }
    spew("once", "22", 2), spew("once", "333", 3);
    event = next(fd);
    if (check(event != NULL, "no event of what is watched once")) check_equal(event->wd, once);
    check(inotify_rm_watch(fd, once) == -1, "what is watched once is watched still");
    while (next(fd)) {
    }
    check_equal(inotify_add_watch(fd, "dir", IN_CREATE), dir);
    int more = inotify_add_watch(fd, "other", IN_MODIFY);
    check(more > once, "a new watch has number %d, not above %d", more, once);
    check_equal(fcntl(empty, F_GETFL) & O_NONBLOCK, 0);
    check_equal(fcntl(empty, F_GETFD), FD_CLOEXEC);
    check_equal(inotify_add_watch(empty, "other", IN_MODIFY), 1);
    check_equal(close(held), 0);
    return finish();
}
