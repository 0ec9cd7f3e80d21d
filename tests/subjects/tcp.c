/* TCP sockets: listening ones, and connections between processes of the job, with what is on its way in them. */
#include "subject.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int listening(int family, int any, int backlog, uint16_t *port) {
    int fd = must(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = any ? in6addr_any : in6addr_loopback};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK)};
    void *address = family == AF_INET ? (void *)&four : (void *)&six;
    socklen_t length = family == AF_INET ? sizeof four : sizeof six;
    must(bind(fd, address, length));
    must(listen(fd, backlog));
    must(getsockname(fd, address, &length));
    *port = family == AF_INET ? four.sin_port : six.sin6_port;
    return fd;
}

static int connected(int family, uint16_t port) {
    int fd = must(socket(family, SOCK_STREAM, 0));
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback, .sin6_port = port};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = port};
    if (family == AF_INET)
        must(connect(fd, (struct sockaddr *)&four, sizeof four));
    else
        must(connect(fd, (struct sockaddr *)&six, sizeof six));
    return fd;
}

static uint16_t port_of(int fd, int peer) {
    struct sockaddr_in6 address;
    socklen_t length = sizeof address;
    must(peer ? getpeername(fd, (struct sockaddr *)&address, &length) : getsockname(fd, (struct sockaddr *)&address, &length));
    return address.sin6_port; /* at the same place in both kinds */
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    must(getsockopt(fd, level, name, &value, &length));
    return value;
}

static void set_option(int fd, int level, int name, int value) { must(setsockopt(fd, level, name, &value, sizeof value)); }

/* Of an earlier connection from a port in use, to somewhere else, something is left for a minute (TIME_WAIT). */
static void leave_remains(uint16_t from) {
    uint16_t port;
    int listener = listening(AF_INET, 0, 5, &port), client = must(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = port};
    uint32_t only = ntohs(from) * 0x10001u;
    /* IP_LOCAL_PORT_RANGE, since Linux 6.3 */
    if (setsockopt(client, IPPROTO_IP, 51, &only, sizeof only) == 0) {
        must(connect(client, (struct sockaddr *)&there, sizeof there));
        check_equal(port_of(client, 0), from);
        int server = must(accept(listener, NULL, NULL));
        char byte;
        must(close(client));
        check_equal(read(server, &byte, 1), 0);
        must(close(server));
    } else {
        must(close(client));
    }
    must(close(listener));
}

static void receives(int fd, const char *text) {
    char got[64] = "";
    ssize_t n = recv(fd, got, strlen(text), MSG_WAITALL);
    check(n == (ssize_t)strlen(text) && strcmp(got, text) == 0, "received %zd bytes (%s), expected %s", n, got, text);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int has_six = access("/proc/net/if_inet6", F_OK) == 0;
    uint16_t four_port, any_port, six_port = 0, gone_port;
    int four = listening(AF_INET, 0, 5, &four_port), any = listening(has_six ? AF_INET6 : AF_INET, 1, 17, &any_port);
    int six = has_six ? listening(AF_INET6, 0, 5, &six_port) : -1, gone = listening(AF_INET, 0, 5, &gone_port);
    must(fcntl(four, F_SETFL, O_NONBLOCK));
    pid_t child = must(fork());
    if (child == 0) {
        int client = connected(AF_INET, four_port);
        must(write(client, "from the child", 14));
        mark("child");
        wait_go();
        receives(client, "to the child");
        check_equal(write(client, "answer", 6), 6);
        char byte;
        check_equal(read(client, &byte, 1), 0);
        finish_child();
    }
    await_mark("child");
    int server = must(accept(four, NULL, NULL));
    must(write(server, "to the child", 12));
    int here = connected(AF_INET, any_port), there = must(accept(any, NULL, NULL));
    set_option(here, IPPROTO_TCP, TCP_NODELAY, 1), set_option(here, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(here, IPPROTO_TCP, TCP_KEEPIDLE, 77), set_option(there, SOL_SOCKET, SO_RCVBUF, 100000);
    static unsigned char data[60000], got[sizeof data];
    fill(data, sizeof data, 1);
    must(write(here, data, sizeof data) == sizeof data ? 0 : -1);
    int six_client = has_six ? connected(AF_INET6, six_port) : -1, six_server = has_six ? must(accept(six, NULL, NULL)) : -1;
    if (has_six) must(write(six_client, "sixth", 5));
    int half = connected(AF_INET, gone_port), other_half = must(accept(gone, NULL, NULL));
    must(close(gone)); /* the connection outlives what it was accepted by */
    must(write(half, "last words", 10)), must(shutdown(half, SHUT_WR));
    int idle = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    uint16_t here_port = port_of(here, 0), half_port = port_of(half, 0);
    int buffer = option(there, SOL_SOCKET, SO_RCVBUF);
    leave_remains(here_port);
    ready();
    wait_go();

    if (sabotage()) must(shutdown(here, SHUT_RDWR)), must(close(here)), here = must(dup(idle));
    receives(server, "from the child");
    receives(server, "answer");
    must(close(server));
    check_equal(port_of(there, 1), here_port);
    check_equal(port_of(there, 0), any_port);
    check_equal(recv(there, got, sizeof got, MSG_WAITALL), sizeof got);
    check_filled(got, sizeof got, 1);
    check_equal(write(there, "back", 4), 4);
    if (!sabotage()) receives(here, "back");
    check_equal(option(here, IPPROTO_TCP, TCP_NODELAY), 1);
    check_equal(option(here, SOL_SOCKET, SO_KEEPALIVE), 1);
    check_equal(option(here, IPPROTO_TCP, TCP_KEEPIDLE), 77);
    check_equal(option(there, SOL_SOCKET, SO_RCVBUF), buffer);
    check_equal(option(there, IPPROTO_TCP, TCP_NODELAY), 0);
    check_equal(option(there, SOL_SOCKET, SO_REUSEADDR), 0);
    if (has_six) receives(six_server, "sixth");
    receives(other_half, "last words");
    char byte;
    check_equal(read(other_half, &byte, 1), 0);
    check_equal(port_of(half, 0), half_port);
    check_equal(port_of(half, 1), gone_port);
    check_equal(write(other_half, "reply", 5), 5);
    receives(half, "reply");
    signal(SIGPIPE, SIG_IGN);
    check(write(half, "x", 1) == -1 && errno == EPIPE, "the shut end writes");
    check(accept(four, NULL, NULL) == -1 && errno == EAGAIN, "there is one more connection");
    check_equal(fcntl(four, F_GETFD), FD_CLOEXEC);
    check_equal(fcntl(idle, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    int fresh = connected(AF_INET, four_port);
    check(accept(four, NULL, NULL) >= 0, "accept: %s", strerror(errno));
    close(fresh);
    fresh = connected(AF_INET, any_port);
    check(accept(any, NULL, NULL) >= 0, "accept: %s", strerror(errno));
    reap(child);
    return finish();
}
