/* The umask, the working directory, and the root directory; also those that CLONE_FS processes share. */
#include "subject.h"
#include <sched.h>

static char clone_stack[65536];
static int share(void *unused) { /* a process that shares its parent's working directory */
    (void)unused;
    mark("sharer");
    await_mark("go");
    must(chdir("by-sharer"));
    umask(0007);
    return 0;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char top[4096], cwd[4096];
    must(mkdir("here", 0777));
    must(chdir("here"));
    must(mkdir("by-sharer", 0777));
    must(getcwd(top, sizeof top) ? 0 : -1);
    umask(0027);

    pid_t jailed = 0;
    if (geteuid() == 0) {
        must(mkdir("jail", 0777));
        must(mkdir("jail/inner", 0777));
        if ((jailed = must(fork())) == 0) {
            must(chroot("jail"));
            must(chdir("/inner"));
            mark("/jailed");
            await_mark("/go");
            must(getcwd(cwd, sizeof cwd) ? 0 : -1);
            check(strcmp(cwd, "/inner") == 0, "the jailed one is in %s", cwd);
            check(access("/inner", F_OK) == 0 && access("/proc", F_OK) != 0, "the jailed one has another root");
            finish_child();
        }
        await_mark("jail/jailed");
    }
    pid_t sharer = must(clone(share, clone_stack + sizeof clone_stack, CLONE_FS | SIGCHLD, NULL));
    await_mark("sharer");
    if (write(STDOUT_FILENO, "READY\n", 6) != 6) return 3;
    mark("../ready");
    await_mark("../go");

    if (sabotage()) umask(0);
    must(getcwd(cwd, sizeof cwd) ? 0 : -1);
    check(strcmp(cwd, top) == 0, "the working directory is %s instead of %s", cwd, top);
    int mask = (int)umask(0);
    check_equal(mask, 0027);
    umask((mode_t)mask);
    if (jailed) {
        mark("jail/go");
        reap(jailed);
    }
    mark("go"); /* the sharer changes our directory and umask together with its own */
    reap(sharer);
    must(getcwd(cwd, sizeof cwd) ? 0 : -1);
    check(strncmp(cwd, top, strlen(top)) == 0 && strcmp(cwd + strlen(top), "/by-sharer") == 0, "after the sharer's chdir: %s", cwd);
    check_equal(umask(0), 0007);
    return finish();
}
