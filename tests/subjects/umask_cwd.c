/* The umask, the working directory, and the root directory; shared between threads and between CLONE_FS processes. */
#include "subject.h"
#include <pthread.h>
#include <sched.h>

static char clone_stack[65536];
static volatile int threads_ready;

static void *run(void *unused) { /* with a working directory of its own */
    (void)unused;
    char cwd[4096], expected[4096];
    must(unshare(CLONE_FS));
    must(chdir("thread"));
    umask(0077);
    must(getcwd(expected, sizeof expected) ? 0 : -1);
    threads_ready = 1;
    await_mark("../../go");
    must(getcwd(cwd, sizeof cwd) ? 0 : -1);
    check(strcmp(cwd, expected) == 0, "the thread is in %s instead of %s", cwd, expected);
    check_equal(umask(0), 0077);
    return NULL;
}

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
    must(mkdir("thread", 0777));
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
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!threads_ready) sleep_ms(1);
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
    pthread_join(thread, NULL);
    mark("go"); /* the sharer changes our directory and umask together with its own */
    reap(sharer);
    must(getcwd(cwd, sizeof cwd) ? 0 : -1);
    check(strncmp(cwd, top, strlen(top)) == 0 && strcmp(cwd + strlen(top), "/by-sharer") == 0, "after the sharer's chdir: %s", cwd);
    check_equal(umask(0), 0007);
    return finish();
}
