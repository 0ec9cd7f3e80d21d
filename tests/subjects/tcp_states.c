/* TCP sockets in unusual states: connections not accepted yet, ends that read no more, ended connections, more sent than the other end has
 * room for. */
#include "subject.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

static struct sockaddr_in address = {.sin_family = AF_INET};

static int listening(int backlog) {
    int fd = must(socket(AF_INET, SOCK_STREAM, 0));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = 0;
    must(bind(fd, (struct sockaddr *)&address, sizeof address));
    must(listen(fd, backlog));
    socklen_t length = sizeof address;
    must(getsockname(fd, (struct sockaddr *)&address, &length));
    return fd;
}

/* Connects to the last listening socket. */
static int connected(void) {
    int fd = must(socket(AF_INET, SOCK_STREAM, 0));
    must(connect(fd, (struct sockaddr *)&address, sizeof address));
    return fd;
}

static uint16_t port_of(int fd, int peer) {
    struct sockaddr_in at = {0};
    socklen_t length = sizeof at;
    int result = peer ? getpeername(fd, (struct sockaddr *)&at, &length) : getsockname(fd, (struct sockaddr *)&at, &length);
    return result == 0 ? at.sin_port : 0;
}

static void receives(int fd, const char *text) {
    char got[64] = "";
    ssize_t n = recv(fd, got, strlen(text), MSG_WAITALL);
    check(n == (ssize_t)strlen(text) && strcmp(got, text) == 0, "received %zd bytes (%s), expected %s", n, got, text);
}

static unsigned char data[8 << 20], got[sizeof data];

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    int any = listening(5);
    int deaf = connected(), speaker = must(accept(any, NULL, NULL));
    must(shutdown(deaf, SHUT_RD));
    int ended = connected(), last = must(accept(any, NULL, NULL));
    must(write(last, "farewell", 8)), must(close(last));
    sleep_ms(20);
    must(shutdown(ended, SHUT_WR)); /* both have closed: the connection is over, and what came is still to be read */
    uint16_t ended_port = port_of(ended, 0);
    int full = connected(), reader = must(accept(any, NULL, NULL));
    fill(data, sizeof data, 3);
    must(fcntl(full, F_SETFL, O_NONBLOCK));
    size_t sent = 0;
    for (int i = 0; i < 5; i++, sleep_ms(10)) {
        ssize_t n;
        while (sent < sizeof data && (n = write(full, data + sent, sizeof data - sent)) > 0) sent += (size_t)n;
    }
    if (sent < 100000 || sent == sizeof data) broken("%zu bytes fit into a connection", sent);
    int queue = listening(5);
    int first = connected(), second = connected();
    uint16_t first_port = port_of(first, 0), second_port = port_of(second, 0);
    struct pollfd readable = {.fd = queue, .events = POLLIN};
    must(poll(&readable, 1, 1000));
    ready();
    wait_go();

    if (sabotage()) must(close(first));
    check_equal(write(deaf, "I speak", 7), 7);
    receives(speaker, "I speak");
    char byte;
    check_equal(recv(deaf, &byte, 1, MSG_DONTWAIT), 0);
    receives(ended, "farewell");
    check_equal(recv(ended, &byte, 1, MSG_DONTWAIT), 0);
    check(write(ended, "x", 1) == -1 && errno == EPIPE, "an ended connection can be written to");
    check_equal(port_of(ended, 0), ended_port);
    check_equal(port_of(ended, 1), 0);
    size_t arrived = 0;
    while (arrived < sent) {
        ssize_t n = recv(reader, got + arrived, sent - arrived, 0);
        if (!check(n > 0, "received %zd after %zu of %zu bytes: %s", n, arrived, sent, strerror(errno))) break;
        arrived += (size_t)n;
    }
    check_equal(memcmp(got, data, sent), 0);
    check_equal(recv(reader, &byte, 1, MSG_DONTWAIT), -1);
    int accepted = must(accept(queue, NULL, NULL)), other = must(accept(queue, NULL, NULL));
    check_equal(port_of(accepted, 1), first_port);
    check_equal(port_of(other, 1), second_port);
    check_equal(write(first, "hello", 5), 5);
    receives(accepted, "hello");
    return finish();
}
