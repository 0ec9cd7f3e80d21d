/* UDP and netlink sockets: addresses, connections, options, groups; and they work. */
#include "subject.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <sys/socket.h>

static struct sockaddr_in name_of(int fd, int peer) {
    struct sockaddr_in address = {0};
    socklen_t size = sizeof address;
    if (peer) getpeername(fd, (struct sockaddr *)&address, &size);
    else must(getsockname(fd, (struct sockaddr *)&address, &size));
    return address;
}

static int number(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    check_equal(getsockopt(fd, level, name, &value, &size), 0);
    return value;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int server = must(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)), client = must(socket(AF_INET, SOCK_DGRAM, 0));
    int six = must(socket(AF_INET6, SOCK_DGRAM, 0)), unbound = must(socket(AF_INET, SOCK_DGRAM, 0));
    must(bind(server, (struct sockaddr *)&any, sizeof any));
    struct sockaddr_in at = name_of(server, 0);
    must(setsockopt(server, IPPROTO_IP, IP_PKTINFO, &(int){1}, 4));
    must(setsockopt(server, SOL_SOCKET, SO_RCVBUF, &(int){100000}, 4));
    must(connect(client, (struct sockaddr *)&at, sizeof at));
    struct sockaddr_in from = name_of(client, 0);
    must(setsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, &(int){1}, 4));
    must(bind(six, (struct sockaddr *)&(struct sockaddr_in6){.sin6_family = AF_INET6}, sizeof(struct sockaddr_in6)));
    must(setsockopt(unbound, SOL_SOCKET, SO_BROADCAST, &(int){1}, 4));
    int route = must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    must(bind(route, (struct sockaddr *)&(struct sockaddr_nl){.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK}, 12));
    struct sockaddr_nl port = {0}, again = {0};
    socklen_t size = sizeof port;
    must(getsockname(route, (struct sockaddr *)&port, &size));
    ready();
    wait_go();

    if (sabotage()) must(setsockopt(server, IPPROTO_IP, IP_PKTINFO, &(int){0}, 4));
    struct sockaddr_in now_at = name_of(server, 0), now_from = name_of(client, 0), peer = name_of(client, 1);
    check_equal(ntohs(now_at.sin_port), ntohs(at.sin_port));
    check_equal(ntohs(now_from.sin_port), ntohs(from.sin_port));
    check_equal(ntohs(peer.sin_port), ntohs(at.sin_port));
    check_equal(number(server, IPPROTO_IP, IP_PKTINFO), 1);
    check_equal(number(server, SOL_SOCKET, SO_RCVBUF), 200000);
    check_equal(number(six, IPPROTO_IPV6, IPV6_V6ONLY), 1);
    check_equal(number(unbound, SOL_SOCKET, SO_BROADCAST), 1);
    check_equal(name_of(unbound, 0).sin_port, 0);
    check_equal(fcntl(server, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    check_equal(fcntl(client, F_GETFL) & O_NONBLOCK, 0);
    char text[8] = "";
    struct sockaddr_in sender = {0};
    size = sizeof sender;
    check_equal(send(client, "ping", 4, 0), 4);
    check_equal(recvfrom(server, text, sizeof text, 0, (struct sockaddr *)&sender, &size), 4);
    check_equal(sendto(server, "pong", 4, 0, (struct sockaddr *)&sender, size), 4);
    check_equal(recv(client, text, sizeof text, 0), 4);
    check(!memcmp(text, "pong", 4), "it was %.4s", text);

    size = sizeof again;
    must(getsockname(route, (struct sockaddr *)&again, &size));
    check_equal(again.nl_pid, port.nl_pid);
    check_equal(again.nl_groups, RTMGRP_LINK);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    check_equal(send(route, &request, sizeof request, 0), sizeof request);
    struct nlmsghdr answer[1024];
    check(recv(route, answer, sizeof answer, 0) > 0 && answer->nlmsg_type == RTM_NEWLINK, "no answer about links");
    return finish();
}
