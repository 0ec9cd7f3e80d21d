/* Raw and packet sockets: protocols, addresses, options, filters, memberships; and they work. */
#include "subject.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/icmp.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int number(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    check_equal(getsockopt(fd, level, name, &value, &size), 0);
    return value;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int raw = socket(AF_INET, SOCK_RAW, 253); /* a protocol for experiments (RFC 3692) */
    if (raw < 0) skip("raw sockets need CAP_NET_RAW");
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000000u | (uint32_t)getpid())}; /* nobody else's */
    must(bind(raw, (struct sockaddr *)&here, sizeof here));
    must(setsockopt(raw, IPPROTO_IP, IP_TTL, &(int){33}, 4));
    int icmp = must(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    must(setsockopt(icmp, SOL_RAW, ICMP_FILTER, &(int){~0}, 4));
    /* Everything is dropped, so that nothing waits. */
    struct sock_filter drop[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    struct sock_fprog filter = {1, drop};
    int packet = must(socket(AF_PACKET, SOCK_DGRAM, 0));
    must(setsockopt(packet, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter));
    struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = 1}, now;
    must(bind(packet, (struct sockaddr *)&link, sizeof link));
    must(setsockopt(packet, SOL_PACKET, PACKET_AUXDATA, &(int){1}, 4));
    struct packet_mreq all = {.mr_ifindex = 1, .mr_type = PACKET_MR_ALLMULTI};
    must(setsockopt(packet, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all));
    ready();
    wait_go();

    if (sabotage()) must(setsockopt(raw, IPPROTO_IP, IP_TTL, &(int){34}, 4));
    check_equal(number(raw, IPPROTO_IP, IP_TTL), 33);
    check_equal(number(icmp, SOL_RAW, ICMP_FILTER), ~0);
    check_equal(number(packet, SOL_PACKET, PACKET_AUXDATA), 1);
    socklen_t size = sizeof now;
    must(getsockname(packet, (struct sockaddr *)&now, &size));
    check_equal(now.sll_ifindex, 1);
    check_equal(ntohs(now.sll_protocol), ETH_P_IP);
    struct sock_filter got[4];
    size = 4; /* instructions */
    check_equal(getsockopt(packet, SOL_SOCKET, SO_GET_FILTER, got, &size), 0);
    check_equal(size, 1);
    check(memcmp(got, drop, sizeof drop) == 0, "another filter");
    check_equal(setsockopt(packet, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &all, sizeof all), 0);
    check_equal(sendto(raw, "probe", 5, 0, (struct sockaddr *)&here, sizeof here), 5);
    char text[64];
    check_equal(recv(raw, text, sizeof text, 0), 25); /* with its IP header */
    check(memcmp(text + 20, "probe", 5) == 0, "something else came back");
    check_equal(recv(packet, text, sizeof text, MSG_DONTWAIT), -1);
    must(setsockopt(packet, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, 4));
    check_equal(sendto(raw, "again", 5, 0, (struct sockaddr *)&here, sizeof here), 5);
    check(recv(packet, text, sizeof text, 0) >= 25, "no packet");
    return finish();
}
