/* A listening TCP socket with a connection that is not accepted yet. The file `descriptor` tells its number. */
#include "subject.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int listener = must(socket(AF_INET, SOCK_STREAM, 0)), number = must(dup2(listener, 77));
    must(close(listener));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    must(bind(number, (struct sockaddr *)&address, sizeof address));
    must(listen(number, 5));
    socklen_t length = sizeof address;
    must(getsockname(number, (struct sockaddr *)&address, &length));
    int client = must(socket(AF_INET, SOCK_STREAM, 0));
    must(connect(client, (struct sockaddr *)&address, sizeof address));
    spew("descriptor", "77", 2);
    ready();
    wait_go();
    if (sabotage()) must(close(number));
    check(accept(number, NULL, NULL) >= 0, "accept: %s", strerror(errno));
    return finish();
}
