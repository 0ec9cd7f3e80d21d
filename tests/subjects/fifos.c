/* FIFOs: opened in every way, by one process and by two, with data in flight. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    must(mkfifo("both", 0600));
    must(mkfifo("split", 0600));
    must(mkfifo("waiting", 0600));
    int both = must(open("both", O_RDWR | O_NONBLOCK));
    char data[3000], got[3000];
    fill(data, sizeof data, 1);
    must(write(both, data, sizeof data));
    int alone = must(open("waiting", O_RDONLY | O_NONBLOCK)); /* no writer ever came */

    pid_t child = must(fork());
    if (child == 0) {
        must(close(both));
        must(close(alone));
        int writer = must(open("split", O_WRONLY));
        must(write(writer, data, 1000));
        mark("child");
        wait_go();
        check_equal(write(writer, data + 1000, 1000), 1000);
        finish_child();
    }
    int reader = must(open("split", O_RDONLY));
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(read(both, got, 1));
    check_equal(fcntl(both, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK);
    check_equal(read(both, got, sizeof got), (long)sizeof data);
    check(memcmp(data, got, sizeof data) == 0, "other bytes in the FIFO");
    size_t length = 0;
    ssize_t n;
    while ((n = read(reader, got + length, sizeof got - length)) > 0) length += (size_t)n;
    check_equal(length, 2000);
    check(memcmp(data, got, 2000) == 0, "other bytes from the other process");
    check_equal(read(alone, got, 1), 0);
    int late = must(open("waiting", O_WRONLY | O_NONBLOCK)); /* the reader is still known at the path */
    check_equal(write(late, "late", 4), 4);
    check_equal(read(alone, got, 10), 4);
    reap(child);
    return finish();
}
