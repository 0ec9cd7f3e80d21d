/* Socket options of all levels on sockets of all families, compared one by one as getsockopt(2) gives them. */
#include "subject.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { SOCKETS = 6, NAMES = 90, ROOM = 64, LEVELS = 4 };

static const int levels[LEVELS] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP};

struct value {
    int length; /* -1: not to be had */
    unsigned char bytes[ROOM];
};

/* Not states but events, and what the kernel makes of the moment. */
static int is_fleeting(int level, int name) {
    if (level == SOL_SOCKET) return name == SO_ERROR || name == 57 /* SO_COOKIE */ || name == 55 /* SO_MEMINFO */;
    if (level == IPPROTO_TCP) return name == TCP_INFO || name == TCP_QUICKACK || name == 28 /* TCP_SAVED_SYN */ || name == TCP_TIMESTAMP;
    return 0;
}

static void look(int fd, struct value found[LEVELS][NAMES]) {
    for (int level = 0; level < LEVELS; level++) {
        for (int name = 1; name < NAMES; name++) {
            struct value *value = &found[level][name];
            socklen_t length = ROOM;
            memset(value, 0, sizeof *value);
            value->length = -1;
            /* SO_PEERPIDFD would make a descriptor. */
            if (is_fleeting(levels[level], name) || (level == 0 && name == 77)) continue;
            if (getsockopt(fd, levels[level], name, value->bytes, &length) == 0) value->length = (int)length;
        }
    }
}

static void set(int fd, int level, int name, int value) { (void)!setsockopt(fd, level, name, &value, sizeof value); }

static void set_all(int fd) {
    static const int any[] = {SO_REUSEADDR, SO_REUSEPORT, SO_KEEPALIVE, SO_BROADCAST, SO_OOBINLINE, SO_TIMESTAMPNS, SO_RXQ_OVFL,
                              SO_SELECT_ERR_QUEUE, SO_ZEROCOPY, SO_PASSCRED, SO_PASSSEC, SO_NOFCS, SO_DONTROUTE, SO_NO_CHECK,
                              SO_PREFER_BUSY_POLL, 75, 76, 82};
    static const int ip[] = {IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_FREEBIND, IP_TRANSPARENT,
                             IP_RECVORIGDSTADDR, IP_BIND_ADDRESS_NO_PORT, IP_RECVFRAGSIZE, IP_NODEFRAG, IP_CHECKSUM, 26};
    static const int ipv6[] = {2, 3, 4, 8, 25, 29, 31, 33, 49, 51, 53, 54, 56, 58, 60, 62, 66, 70, 74, 75, 77, 78};
    for (unsigned i = 0; i < COUNT(any); i++) set(fd, SOL_SOCKET, any[i], 1);
    for (unsigned i = 0; i < COUNT(ip); i++) set(fd, IPPROTO_IP, ip[i], 1);
    for (unsigned i = 0; i < COUNT(ipv6); i++) set(fd, IPPROTO_IPV6, ipv6[i], 1);
    struct linger linger = {1, 7};
    struct timeval time = {3, 4000};
    (void)!setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    (void)!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    (void)!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    (void)!setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
    set(fd, SOL_SOCKET, SO_SNDBUF, 20000), set(fd, SOL_SOCKET, SO_RCVBUF, 30000);
    set(fd, SOL_SOCKET, SO_PRIORITY, 4), set(fd, SOL_SOCKET, SO_MARK, 77), set(fd, SOL_SOCKET, SO_BUSY_POLL, 50);
    set(fd, SOL_SOCKET, SO_MAX_PACING_RATE, 100000), set(fd, SOL_SOCKET, SO_INCOMING_CPU, 0), set(fd, SOL_SOCKET, 74, 0);
    set(fd, IPPROTO_IP, IP_TOS, 0x10), set(fd, IPPROTO_IP, IP_TTL, 33), set(fd, IPPROTO_IP, IP_MINTTL, 3);
    set(fd, IPPROTO_IP, IP_MTU_DISCOVER, 2), set(fd, IPPROTO_IP, IP_MULTICAST_TTL, 5), set(fd, IPPROTO_IP, IP_MULTICAST_ALL, 0);
    set(fd, IPPROTO_IP, IP_UNICAST_IF, (int)htonl(1)), set(fd, IPPROTO_IP, 51, (int)(40000u | 50000u << 16));
    set(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44), set(fd, IPPROTO_IPV6, IPV6_TCLASS, 9), set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, 2);
    set(fd, IPPROTO_IPV6, IPV6_MINHOPCOUNT, 3), set(fd, IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, 0x402);
    static const int tcp[][2] = {{TCP_NODELAY, 1}, {TCP_MAXSEG, 1000}, {TCP_KEEPIDLE, 33}, {TCP_KEEPINTVL, 44}, {TCP_KEEPCNT, 5},
                                 {TCP_SYNCNT, 3}, {TCP_LINGER2, 20}, {TCP_DEFER_ACCEPT, 9}, {TCP_WINDOW_CLAMP, 40000},
                                 {TCP_USER_TIMEOUT, 12345}, {TCP_NOTSENT_LOWAT, 777}, {TCP_SAVE_SYN, 1}, {TCP_INQ, 1},
                                 {TCP_THIN_LINEAR_TIMEOUTS, 1}, {TCP_FASTOPEN_NO_COOKIE, 1}, {44, 3000}, {45, 20}, {46, 8000}};
    for (unsigned i = 0; i < COUNT(tcp); i++) set(fd, IPPROTO_TCP, tcp[i][0], tcp[i][1]);
}

int main(int argc, char **argv) {
    static struct value before[SOCKETS][LEVELS][NAMES], after[LEVELS][NAMES];
    subject_begin(argc, argv);
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int fds[SOCKETS] = {must(socket(AF_INET, SOCK_STREAM, 0)), must(socket(AF_INET, SOCK_DGRAM, 0)), socket(AF_INET6, SOCK_STREAM, 0),
                        socket(AF_INET6, SOCK_DGRAM, 0), pair[0], socket(AF_NETLINK, SOCK_RAW, 0)};
    for (int nth = 0; nth < SOCKETS; nth++) {
        if (fds[nth] < 0) continue;
        set_all(fds[nth]);
        look(fds[nth], before[nth]);
    }
    ready();
    wait_go();
    if (sabotage()) set(fds[1], IPPROTO_IP, IP_RECVOPTS, 0);
    for (int nth = 0; nth < SOCKETS; nth++) {
        if (fds[nth] < 0) continue;
        look(fds[nth], after);
        for (int level = 0; level < LEVELS; level++) {
            for (int name = 1; name < NAMES; name++) {
                struct value *then = &before[nth][level][name], *now = &after[level][name];
                /* Kept by the kernel for those that have been bound or connected; nothing uses it here. */
                if (levels[level] == SOL_SOCKET && name == SO_INCOMING_CPU && nth >= 4) continue;
                check(then->length == now->length && memcmp(then->bytes, now->bytes, ROOM) == 0,
                      "socket %d, level %d, option %d: %d bytes from %02x%02x, were %d from %02x%02x", nth, levels[level], name,
                      now->length, now->bytes[0], now->bytes[1], then->length, then->bytes[0], then->bytes[1]);
            }
        }
    }
    return finish();
}
