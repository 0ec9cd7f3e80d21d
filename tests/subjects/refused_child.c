/* A job of which only a grandchild holds what is refused, a raw socket. The file `descriptor` tells its number, the
 * file `pid` its process. */
#include "subject.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t child = must(fork());
    if (child == 0) {
        pid_t grandchild = must(fork());
        if (grandchild == 0) {
            char text[16];
            int fd = must(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
            spew("descriptor", text, (size_t)snprintf(text, sizeof text, "%d", fd));
            spew("pid", text, (size_t)snprintf(text, sizeof text, "%d", (int)getpid()));
            mark("grandchild");
            wait_go();
            if (sabotage()) must(close(fd));
            check(fcntl(fd, F_GETFD) >= 0, "the socket is gone");
            finish_child();
        }
        reap(grandchild);
        finish_child();
    }
    await_mark("grandchild");
    ready();
    wait_go();
    reap(child);
    return finish();
}
