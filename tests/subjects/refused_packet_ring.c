/* A packet socket with a ring. The file `descriptor` tells its number. */
#include "subject.h"
#include <linux/if_packet.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int packet = socket(AF_PACKET, SOCK_RAW, 0);
    if (packet < 0) skip("packet sockets need CAP_NET_RAW");
    int number = must(dup2(packet, 77));
    must(close(packet));
    struct tpacket_req ring = {.tp_block_size = 4096, .tp_block_nr = 1, .tp_frame_size = 2048, .tp_frame_nr = 2};
    must(setsockopt(number, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
    spew("descriptor", "77", 2);
    ready();
    wait_go();
    if (sabotage()) must(close(number));
    check(fcntl(number, F_GETFD) == 0, "the socket is gone");
    return finish();
}
