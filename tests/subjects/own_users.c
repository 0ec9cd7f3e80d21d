/* A job in a user namespace of its own, as `unshare -r` makes one. */
#include "subject.h"
#include <grp.h>
#include <sched.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char text[256], map[256], caps[64], now_[64];
    snprintf(text, sizeof text, "0 %d 1", (int)getuid());
    snprintf(map, sizeof map, "0 %d 1", (int)getgid());
    if (unshare(CLONE_NEWUSER) != 0) skip("user namespaces: %s", strerror(errno));
    spew("/proc/self/setgroups", "deny", 4);
    spew("/proc/self/uid_map", text, strlen(text));
    spew("/proc/self/gid_map", map, strlen(map));
    field_of("/proc/self/status", "CapEff", caps, sizeof caps);
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    must(write(pair[0], "word", 4));
    pid_t child = must(fork());
    if (child == 0) {
        wait_go();
        check_equal(getuid(), 0);
        finish_child();
    }
    ready();
    wait_go();
    if (sabotage()) must(unshare(CLONE_NEWUSER));
    slurp("/proc/self/uid_map", text, sizeof text);
    unsigned inside = 1, outside = 1, count = 0;
    check(sscanf(text, "%u %u %u", &inside, &outside, &count) == 3 && inside == 0 && count == 1, "the map is %s", text);
    check_equal(geteuid(), 0);
    field_of("/proc/self/status", "CapEff", now_, sizeof now_);
    check(strcmp(caps, now_) == 0, "capabilities are %s, were %s", now_, caps);
    check(setgroups(0, NULL) == -1 && errno == EPERM, "setgroups is allowed");
    slurp("/proc/self/setgroups", text, sizeof text);
    check(strncmp(text, "deny", 4) == 0, "setgroups: %s", text);
    check(sethostname("x", 1) == -1, "it has rights over the host");
    check_equal(unshare(CLONE_NEWUTS), 0);
    check_equal(sethostname("x", 1), 0);
    char word[5] = "";
    check(read(pair[1], word, 4) == 4 && strcmp(word, "word") == 0, "read %s", word);
    reap(child);
    return finish();
}
