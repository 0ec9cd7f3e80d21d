/* A job of which only a grandchild holds what is refused, a packet socket with a ring. The file `descriptor` tells its number, the
 * file `pid` its process. */
#include "subject.h"
#include <linux/if_packet.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t child = must(fork());
    if (child == 0) {
        pid_t grandchild = must(fork());
        if (grandchild == 0) {
            char text[16];
            int fd = must(socket(AF_PACKET, SOCK_RAW, 0));
            struct tpacket_req ring = {.tp_block_size = 4096, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 2};
            must(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
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
