/* A program that has confined itself with landlock(7). */
#include "subject.h"
#include <sys/prctl.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    uint64_t handled = 1 << 7; /* LANDLOCK_ACCESS_FS_MAKE_DIR */
    int ruleset = (int)syscall(444 /* landlock_create_ruleset */, &handled, sizeof handled, 0);
    if (ruleset < 0) skip("landlock: %s", strerror(errno));
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (!sabotage()) must((int)syscall(446 /* landlock_restrict_self */, ruleset, 0));
    close(ruleset);
    ready();
    wait_go();
    check(mkdir("dir", 0777) == -1 && errno == EACCES, "it may make directories");
    return finish();
}
