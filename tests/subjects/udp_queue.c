/* Datagrams that wait in UDP sockets, from senders of the job and from ones that are gone; members of multicast groups. */
#include "subject.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static struct sockaddr_in6 name_of(int fd) {
    struct sockaddr_in6 address = {0};
    socklen_t size = sizeof address;
    must(getsockname(fd, (struct sockaddr *)&address, &size));
    return address;
}

static void receives(int fd, const void *data, size_t length, uint16_t port) {
    static unsigned char got[70000];
    struct sockaddr_in6 from = {0};
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(fd, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
    check(n == (ssize_t)length && memcmp(got, data, length) == 0, "received %zd bytes, expected %zu: %s", n, length, strerror(errno));
    check_equal(ntohs(from.sin6_port), ntohs(port));
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sockaddr_in any = {.sin_family = AF_INET}, loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int server = must(socket(AF_INET, SOCK_DGRAM, 0)), client = must(socket(AF_INET, SOCK_DGRAM, 0)), gone = must(socket(AF_INET, SOCK_DGRAM, 0));
    must(bind(server, (struct sockaddr *)&any, sizeof any));
    struct sockaddr_in6 at = name_of(server);
    loopback.sin_port = at.sin6_port;
    must(connect(client, (struct sockaddr *)&loopback, sizeof loopback));
    must(connect(gone, (struct sockaddr *)&loopback, sizeof loopback));
    uint16_t client_port = name_of(client).sin6_port, gone_port = name_of(gone).sin6_port;
    static unsigned char large[60000];
    fill(large, sizeof large, 5);
    must(send(client, "first", 5, 0)), must(send(gone, "second", 6, 0)), must(send(client, large, sizeof large, 0));
    must(close(gone));
    int has_six = access("/proc/net/if_inet6", F_OK) == 0, six = -1, talker = -1;
    uint16_t talker_port = 0;
    if (has_six) {
        struct sockaddr_in6 local = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
        six = must(socket(AF_INET6, SOCK_DGRAM, 0)), talker = must(socket(AF_INET6, SOCK_DGRAM, 0));
        must(bind(six, (struct sockaddr *)&local, sizeof local));
        local = name_of(six);
        must(connect(talker, (struct sockaddr *)&local, sizeof local));
        talker_port = name_of(talker).sin6_port;
        must(send(talker, "sixth", 5, 0));
    }
    int member = must(socket(AF_INET, SOCK_DGRAM, 0));
    struct ip_mreqn group = {.imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = 1};
    must(setsockopt(member, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    struct ip_mreq_source only = {.imr_multiaddr.s_addr = inet_addr("232.1.2.3"), .imr_interface.s_addr = htonl(INADDR_LOOPBACK),
                                  .imr_sourceaddr.s_addr = inet_addr("127.0.0.9")};
    must(setsockopt(member, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &only, sizeof only));
    ready();
    wait_go();

    if (sabotage()) must(recv(server, large, 5, 0));
    receives(server, "first", 5, client_port);
    receives(server, "second", 6, gone_port);
    receives(server, large, sizeof large, client_port);
    check_equal(recv(server, large, 1, MSG_DONTWAIT), -1);
    if (has_six) receives(six, "sixth", 5, talker_port);
    check_equal(send(client, "more", 4, 0), 4);
    receives(server, "more", 4, client_port);
    check_equal(setsockopt(member, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &only, sizeof only), 0);
    check_equal(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group), 0);
    check_equal(setsockopt(member, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group), -1);
    return finish();
}
