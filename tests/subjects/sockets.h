/* What the subjects of sockets share: messages with descriptors and credentials. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "subject.h"
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

UNUSED static socklen_t unix_address(struct sockaddr_un *address, const char *name) {
    size_t length = strlen(name);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, name, length);
    if (name[0] == '@') { /* abstract, without a NUL behind */
        address->sun_path[0] = 0;
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    }
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
}

UNUSED static int bound(int type, const char *name) {
    struct sockaddr_un address;
    socklen_t length = unix_address(&address, name);
    int fd = must(socket(AF_UNIX, type, 0));
    must(bind(fd, (struct sockaddr *)&address, length));
    return fd;
}

UNUSED static int connect_to(int fd, const char *name) {
    struct sockaddr_un address;
    socklen_t length = unix_address(&address, name);
    return connect(fd, (struct sockaddr *)&address, length);
}

/* Whether a socket (or its peer) has the name. */
UNUSED static int is_named(int fd, int peer, const char *name) {
    struct sockaddr_un address, wanted;
    memset(&address, 0, sizeof address);
    socklen_t length = sizeof address, expected = unix_address(&wanted, name);
    int result = peer ? getpeername(fd, (struct sockaddr *)&address, &length) : getsockname(fd, (struct sockaddr *)&address, &length);
    if (!*name) expected = 2;
    return result == 0 && length == expected && memcmp(&address, &wanted, expected) == 0;
}

/* Sends data with descriptors. */
UNUSED static void send_with(int fd, const void *data, size_t length, const int *fds, int count) {
    char control[256] __attribute__((aligned(8))) = {0};
    struct iovec vector = {(void *)data, length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (count) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)count);
    }
    must(sendmsg(fd, &message, 0) == (ssize_t)length ? 0 : -1);
}

/* Receives data with at most 8 descriptors and credentials; the length, -1 for an error. */
UNUSED static ssize_t receive_with(int fd, void *data, size_t room, int *fds, int *count, struct ucred *credentials) {
    char control[256] __attribute__((aligned(8)));
    struct iovec vector = {data, room};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    if (count) *count = 0;
    if (credentials) memset(credentials, 0, sizeof *credentials);
    if (n < 0) return n;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        size_t length = header->cmsg_len - CMSG_LEN(0);
        if (header->cmsg_type == SCM_RIGHTS && count) {
            *count = (int)(length / sizeof(int));
            memcpy(fds, CMSG_DATA(header), length);
        } else if (header->cmsg_type == SCM_CREDENTIALS && credentials) {
            memcpy(credentials, CMSG_DATA(header), sizeof *credentials);
        }
    }
    return n;
}

UNUSED static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    if (getsockopt(fd, level, name, &value, &length) != 0) return -1;
    return value;
}

UNUSED static void set_option(int fd, int level, int name, int value) { must(setsockopt(fd, level, name, &value, sizeof value)); }

/* Receives exactly this text. */
#define check_receives(fd, text)                                                                              \
    do {                                                                                                      \
        char got_[256] = "";                                                                                  \
        ssize_t n_ = recv(fd, got_, sizeof got_ - 1, MSG_DONTWAIT);                                           \
        check(n_ == (ssize_t)strlen(text) && memcmp(got_, text, strlen(text)) == 0,                           \
              "received %zd bytes (%s), expected %s, line %d", n_, n_ < 0 ? strerror(errno) : got_, text, __LINE__); \
    } while (0)

#endif
