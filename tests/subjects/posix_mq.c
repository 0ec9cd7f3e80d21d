/* POSIX message queues: messages in their order, by name and without, full, of other sizes, through descriptors of several kinds. */
#include "subject.h"
#include <mqueue.h>
#include <sys/mman.h>

static char name[64], other[64];

static void expect(mqd_t queue, const char *text, unsigned priority) {
    char data[8192];
    unsigned got = 1000;
    ssize_t n = mq_receive(queue, data, sizeof data, &got);
    check(n == (ssize_t)strlen(text) && memcmp(data, text, (size_t)n) == 0 && got == priority,
          "got %zd bytes \"%.*s\" of priority %u, expected \"%s\" of %u: %s", n, n > 0 ? (int)n : 0, data, got, text, priority,
          n < 0 ? strerror(errno) : "");
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    snprintf(name, sizeof name, "/subject-%d", (int)getpid()), snprintf(other, sizeof other, "/subject2-%d", (int)getpid());
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, NULL);
    if (queue == (mqd_t)-1) skip("mq_open: %s", strerror(errno));
    mqd_t sender = must(mq_open(name, O_WRONLY)), receiver = must(mq_open(name, O_RDONLY | O_NONBLOCK));
    struct mq_attr small = {.mq_maxmsg = 3, .mq_msgsize = 13};
    mqd_t unnamed = must(mq_open(other, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &small));
    must(mq_unlink(other));
    must(mq_send(queue, "low", 3, 0)), must(mq_send(queue, "high", 4, 32767)), must(mq_send(queue, "low too", 7, 0));
    must(mq_send(queue, "", 0, 5)), must(mq_send(queue, "middle", 6, 5));
    must(mq_send(unnamed, "thirteen byte", 13, 1)), must(mq_send(unnamed, "b", 1, 1)), must(mq_send(unnamed, "c", 1, 1));
    ready();
    wait_go();

    if (sabotage()) expect(queue, "high", 32767);
    struct mq_attr now;
    check_equal(mq_getattr(queue, &now), 0);
    check_equal(now.mq_flags, O_NONBLOCK);
    check_equal(now.mq_curmsgs, 5);
    check_equal(now.mq_maxmsg, 10);
    check_equal(mq_getattr(sender, &now), 0);
    check_equal(now.mq_flags, 0);
    struct stat status;
    check_equal(fstat(queue, &status), 0);
    check_equal(status.st_mode & 0777, 0640);
    expect(receiver, "high", 32767), expect(queue, "", 5), expect(receiver, "middle", 5);
    expect(receiver, "low", 0), expect(receiver, "low too", 0);
    check(mq_send(receiver, "x", 1, 0) == -1 && errno == EBADF, "the receiver may send");
    check_equal(mq_send(sender, "again", 5, 2), 0);
    mqd_t anew = mq_open(name, O_RDONLY | O_NONBLOCK);
    check(anew != (mqd_t)-1, "its name is gone: %s", strerror(errno));
    expect(anew, "again", 2);

    check_equal(mq_getattr(unnamed, &now), 0);
    check_equal(now.mq_msgsize, 13);
    check(mq_send(unnamed, "d", 1, 1) == -1 && errno == EAGAIN, "the full queue takes one more");
    check(mq_open(other, O_RDONLY) == (mqd_t)-1 && errno == ENOENT, "its name is there again");
    expect(unnamed, "thirteen byte", 1), expect(unnamed, "b", 1), expect(unnamed, "c", 1);
    mq_unlink(name);
    return finish();
}
