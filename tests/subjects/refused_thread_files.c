/* A thread with a descriptor table of its own (CLONE_FILES of unshare(2)). */
#include "subject.h"
#include <pthread.h>
#include <sched.h>

static int ends[2];
static volatile int set_up;

static void *own(void *argument) {
    must(unshare(CLONE_FILES));
    close(ends[0]);
    set_up = 1;
    wait_go();
    check(fcntl(ends[0], F_GETFD) == -1, "the thread has the descriptor that it closed");
    return argument;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    must(pipe(ends));
    pthread_t thread;
    must(-pthread_create(&thread, NULL, own, NULL));
    while (!set_up) sleep_ms(1);
    ready();
    wait_go();
    if (sabotage()) close(ends[0]);
    check(fcntl(ends[0], F_GETFD) >= 0, "the thread has closed the descriptor of others");
    pthread_join(thread, NULL);
    return finish();
}
