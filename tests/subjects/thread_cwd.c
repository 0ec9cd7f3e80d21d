/* A thread with a working directory and a umask of its own. */
#include "subject.h"
#include <pthread.h>
#include <sched.h>

static volatile int apart;

static void *run(void *unused) {
    (void)unused;
    char cwd[4096], expected[4096];
    must(unshare(CLONE_FS));
    must(chdir("thread"));
    umask(0077);
    must(getcwd(expected, sizeof expected) ? 0 : -1);
    apart = 1;
    while (!marked("go") && !marked("../go")) sleep_ms(5); /* wherever it is */
    must(getcwd(cwd, sizeof cwd) ? 0 : -1);
    check(strcmp(cwd, expected) == 0, "the thread is in %s instead of %s", cwd, expected);
    check_equal(umask(0), 0077);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    must(mkdir("thread", 0777));
    umask(0027);
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!apart) sleep_ms(1);
    ready();
    wait_go();
    if (sabotage()) umask(0);
    check_equal(umask(0027), 0027);
    check(access("thread", F_OK) == 0, "the main thread is elsewhere");
    pthread_join(thread, NULL);
    return finish();
}
