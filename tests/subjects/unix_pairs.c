/* Pairs of Unix sockets: what is on its way in them, with descriptors (of sockets too) and credentials; shut down and closed ends; options. */
#include "sockets.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    int plain[2], big[2], rights[2], nested[2], inner[2], half[2], closed[2], records[2], datagrams[2], creds[2], split[2], idle[2];
    int *streams[] = {plain, big, rights, nested, inner, half, closed, creds, split, idle};
    for (size_t i = 0; i < COUNT(streams); i++) must(socketpair(AF_UNIX, SOCK_STREAM | (i == 0 ? SOCK_NONBLOCK : 0), 0, streams[i]));
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, records)), must(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));

    must(write(plain[0], "to one", 6)), must(write(plain[1], "and back", 8));
    static unsigned char data[150000];
    fill(data, sizeof data, 1);
    must(send(big[0], data, sizeof data, MSG_DONTWAIT) == sizeof data ? 0 : -1);

    spew("file", "0123456789", 10);
    int file = must(open("file", O_RDONLY)), only = must(open("file", O_RDONLY));
    must(lseek(file, 3, SEEK_SET)), must(lseek(only, 5, SEEK_SET));
    must(write(rights[0], "before", 6));
    send_with(rights[0], "with", 4, (int[]){file, only}, 2);
    must(write(rights[0], "after", 5));
    must(close(only)); /* lives on only in the socket */

    must(write(inner[0], "deep", 4));
    send_with(nested[0], "n", 1, &inner[1], 1);
    must(close(inner[1]));

    must(write(half[0], "last", 4)), must(shutdown(half[0], SHUT_WR));
    must(write(closed[0], "words", 5)), must(close(closed[0]));
    must(send(records[0], "one", 3, 0)), must(send(records[0], "three", 5, 0)), send_with(records[0], "f", 1, &file, 1);
    must(send(datagrams[1], "dgram one", 9, 0)), must(send(datagrams[1], "dgram two", 9, 0));
    set_option(creds[1], SOL_SOCKET, SO_PASSCRED, 1);
    must(write(creds[0], "mine", 4));
    pid_t child = must(fork());
    if (child == 0) {
        must(close(split[0]));
        must(write(creds[0], "child's", 7));
        must(write(split[1], "from the child", 14));
        mark("child");
        wait_go();
        char text[16] = "";
        check(read(split[1], text, sizeof text) == 4 && strcmp(text, "ping") == 0, "the child got %s", text);
        check_equal(write(split[1], "pong", 4), 4);
        while (!marked("done")) sleep_ms(2);
        finish_child();
    }
    await_mark("child");
    must(close(split[1]));
    set_option(idle[0], SOL_SOCKET, SO_SNDBUF, 40000);
    set_option(idle[0], SOL_SOCKET, SO_RCVLOWAT, 3);
    struct timeval timeout = {7, 500000};
    must(setsockopt(idle[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
    int buffer = option(idle[0], SOL_SOCKET, SO_SNDBUF), usual = option(idle[1], SOL_SOCKET, SO_SNDBUF);
    struct ucred peer;
    socklen_t length = sizeof peer;
    ready();
    wait_go();

    if (sabotage()) must(write(plain[0], "!", 1));
    int fds[8], count;
    static unsigned char got[sizeof data];
    check_receives(plain[1], "to one");
    check_receives(plain[0], "and back");
    check(recv(plain[0], got, 1, 0) == -1 && errno == EAGAIN, "the non-blocking socket has more, or blocks");
    check_equal(fcntl(plain[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    check_equal(fcntl(big[0], F_GETFL) & O_NONBLOCK, 0);
    size_t total = 0;
    for (ssize_t n; (n = recv(big[1], got + total, sizeof got - total, MSG_DONTWAIT)) > 0;) total += (size_t)n;
    check_equal(total, sizeof data);
    check_filled(got, sizeof got, 1);

    check_equal(receive_with(rights[1], got, 6, fds, &count, NULL), 6);
    check_equal(count, 0);
    check_equal(receive_with(rights[1], got, 100, fds, &count, NULL), 4);
    check_equal(count, 2);
    char text[16] = "";
    check(count == 2 && lseek(fds[0], 0, SEEK_CUR) == 3 && lseek(fds[1], 0, SEEK_CUR) == 5, "the offsets differ");
    must(lseek(file, 7, SEEK_SET));
    check(count == 2 && lseek(fds[0], 0, SEEK_CUR) == 7, "it is not the same open file any more");
    check(count == 2 && read(fds[1], text, 5) == 5 && memcmp(text, "56789", 5) == 0, "the file sent reads %s", text);
    check_receives(rights[1], "after");

    check_equal(receive_with(nested[1], got, 100, fds, &count, NULL), 1);
    check_equal(count, 1);
    if (count == 1) {
        check_receives(fds[0], "deep");
        check_equal(write(inner[0], "more", 4), 4);
        check_receives(fds[0], "more");
    }
    check_receives(half[1], "last");
    check_equal(recv(half[1], got, 1, MSG_DONTWAIT), 0);
    check(send(half[0], "x", 1, 0) == -1 && errno == EPIPE, "the shut end writes");
    check_equal(write(half[1], "back", 4), 4);
    check_receives(half[0], "back");
    check_receives(closed[1], "words");
    check_equal(recv(closed[1], got, 1, MSG_DONTWAIT), 0);
    check(write(closed[1], "x", 1) == -1 && errno == EPIPE, "writing to a closed end: %s", strerror(errno));
    check_receives(records[1], "one");
    check_receives(records[1], "three");
    check_equal(receive_with(records[1], got, 100, fds, &count, NULL), 1);
    check(count == 1 && lseek(fds[0], 0, SEEK_CUR) == 7, "the file in the record");
    check_equal(fcntl(records[0], F_GETFD), FD_CLOEXEC);
    check_receives(datagrams[0], "dgram one");
    check_receives(datagrams[0], "dgram two");
    struct ucred from;
    check_equal(receive_with(creds[1], got, 4, fds, &count, &from), 4);
    check_equal(from.pid, getpid());
    check_equal(from.uid, getuid());
    check_equal(receive_with(creds[1], got, 100, fds, &count, &from), 7);
    check_equal(from.pid, child);
    check_equal(option(creds[1], SOL_SOCKET, SO_PASSCRED), 1);
    check_equal(option(idle[0], SOL_SOCKET, SO_SNDBUF), buffer);
    check_equal(option(idle[1], SOL_SOCKET, SO_SNDBUF), usual);
    check_equal(option(big[0], SOL_SOCKET, SO_SNDBUF), usual);
    check_equal(option(idle[0], SOL_SOCKET, SO_RCVLOWAT), 3);
    struct timeval now_;
    socklen_t size = sizeof now_;
    must(getsockopt(idle[0], SOL_SOCKET, SO_RCVTIMEO, &now_, &size));
    check(now_.tv_sec == 7 && now_.tv_usec == 500000, "the timeout is %ld s %ld us", now_.tv_sec, now_.tv_usec);
    must(getsockopt(split[0], SOL_SOCKET, SO_PEERCRED, &peer, &length));
    check_equal(peer.pid, getpid());
    check(is_named(split[0], 0, "") && is_named(split[0], 1, ""), "it has a name");
    check_receives(split[0], "from the child");
    check_equal(write(split[0], "ping", 4), 4);
    sleep_ms(50);
    char pong[8] = "";
    check(read(split[0], pong, 4) == 4 && strcmp(pong, "pong") == 0, "the child answers %s", pong);
    mark("done");
    reap(child);
    return finish();
}
