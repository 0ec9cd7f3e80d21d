/* A process whose main thread has ended while its other threads run on. */
#include "subject.h"
#include <pthread.h>

static pthread_t main_thread;

static char state_of_leader(void) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)getpid());
    slurp(path, text, sizeof text);
    return strrchr(text, ')')[2];
}

static void *run(void *unused) {
    (void)unused;
    pid_t process = getpid(), self = thread_id();
    pthread_join(main_thread, NULL);
    while (state_of_leader() != 'Z') sleep_ms(1);
    ready();
    wait_go();
    if (sabotage()) process++;
    check_equal(getpid(), process);
    check_equal(thread_id(), self);
    check_equal(state_of_leader(), 'Z');
    _exit(finish());
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    main_thread = pthread_self();
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    pthread_exit(NULL);
}
