/* A connection to a server that is not part of the job, on the port in argv[2]. The server says a line, and answers each one. */
#include "subject.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static unsigned char data[3 << 20];

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (argc < 3) skip("a server to talk to");
    signal(SIGPIPE, SIG_IGN);
    int fd = must(socket(AF_INET, SOCK_STREAM, 0)), number = must(dup2(fd, 77)), on = 1;
    must(close(fd));
    must(setsockopt(number, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)atoi(argv[2]))};
    must(connect(number, (struct sockaddr *)&address, sizeof address));
    struct sockaddr_in own, after;
    socklen_t length = sizeof own;
    must(getsockname(number, (struct sockaddr *)&own, &length));
    char line[64] = "";
    must(recv(number, line, 5, MSG_WAITALL)); /* "hello" of "hello\n"; the rest is not read yet */
    /* More than the other end reads for now. */
    fill(data, sizeof data, 7);
    must(fcntl(number, F_SETFL, O_NONBLOCK));
    size_t sent = 0;
    for (int i = 0; i < 5; i++, sleep_ms(10)) {
        ssize_t n;
        while (sent < sizeof data && (n = send(number, data + sent, sizeof data - sent, 0)) > 0) sent += (size_t)n;
    }
    must(fcntl(number, F_SETFL, 0));
    char text[32];
    spew("sent", text, (size_t)sprintf(text, "%zu", sent));
    spew("descriptor", "77", 2);
    ready();
    wait_go();

    length = sizeof after;
    check(getsockname(number, (struct sockaddr *)&after, &length) == 0 && after.sin_port == own.sin_port, "another port");
    memset(line, 0, sizeof line);
    check_equal(recv(number, line, 1, MSG_WAITALL), 1);
    check_equal(line[0], '\n');
    if (marked("closed")) {
        check(recv(number, line, 1, 0) == -1 && errno == ECONNRESET, "reading gives %s, not ECONNRESET", strerror(errno));
        check_equal(recv(number, line, 1, 0), 0);
        check(write(number, "x", 1) == -1 && errno == EPIPE, "writing gives %s, not EPIPE", strerror(errno));
        return finish();
    }
    ssize_t n = recv(number, line, 9, MSG_WAITALL);
    check(n == 9 && strcmp(line, "meanwhile") == 0, "received %zd bytes (%s)", n, line);
    for (size_t done = sent; done < sizeof data;) {
        n = send(number, data + done, sizeof data - done, 0);
        if (!check(n > 0, "send: %s", strerror(errno))) break;
        done += (size_t)n;
    }
    memset(line, 0, sizeof line);
    n = recv(number, line, 4, MSG_WAITALL);
    check(n == 4 && strcmp(line, "done") == 0, "received %zd bytes (%s)", n, line);
    length = sizeof on, on = 0;
    must(getsockopt(number, IPPROTO_TCP, TCP_NODELAY, &on, &length));
    check_equal(on, 1);
    return finish();
}
