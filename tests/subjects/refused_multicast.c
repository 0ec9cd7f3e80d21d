/* A UDP socket in a multicast group, and a raw one. */
#include "subject.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int fd = must(socket(AF_INET, SOCK_DGRAM, 0));
    struct ip_mreqn group = {.imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = 1};
    must(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    if (raw < 0) skip("raw sockets need CAP_NET_RAW");
    ready();
    wait_go();
    if (sabotage()) must(close(raw));
    check(fcntl(raw, F_GETFD) == 0, "the raw socket is gone");
    check_equal(setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group), 0);
    return finish();
}
