/* A job with a network, IPC objects, and a host name of its own: it has made these namespaces before anything else. */
#include "subject.h"
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/sem.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0) skip("namespaces need CAP_SYS_ADMIN");
    must(sethostname("elsewhere", 9));
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int probe = must(socket(AF_INET, SOCK_DGRAM, 0));
    must(ioctl(probe, SIOCSIFFLAGS, &up));
    /* A port that is likely to be taken outside. */
    int fd = must(socket(AF_INET, SOCK_STREAM, 0)), client = must(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(22)};
    must(bind(fd, (struct sockaddr *)&address, sizeof address));
    must(listen(fd, 5));
    must(connect(client, (struct sockaddr *)&address, sizeof address));
    int server = must(accept(fd, NULL, NULL)), pair[2];
    must(write(client, "inside", 6));
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int set = must(semget(4711, 1, IPC_CREAT | IPC_EXCL | 0600));
    must(semctl(set, 0, SETVAL, 5));
    ready();
    wait_go();
    char text[256] = "";
    if (sabotage()) must(sethostname("other", 5));
    must(gethostname(text, sizeof text));
    check(strcmp(text, "elsewhere") == 0, "the host is called %s", text);
    check(ioctl(probe, SIOCGIFFLAGS, &up) == 0 && up.ifr_flags & IFF_UP, "the loopback interface is down");
    memset(text, 0, sizeof text);
    check(recv(server, text, 6, MSG_WAITALL) == 6 && strcmp(text, "inside") == 0, "received %s", text);
    check_equal(semctl(set, 0, GETVAL), 5);
    check_equal(semget(4711, 1, 0), set);
    slurp("/proc/net/dev", text, sizeof text);
    check(strstr(text, "eth") == NULL, "there are more interfaces: %s", text);
    check_equal(sethostname("free", 4), 0);
    return finish();
}
