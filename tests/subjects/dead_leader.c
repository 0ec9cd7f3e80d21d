/* A process whose main thread has ended while its other threads run on. */
#include "subject.h"
#include <pthread.h>

static pthread_t main_thread;
static int ends[2];

static char state_of_leader(void) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)getpid());
    slurp(path, text, sizeof text);
    return strrchr(text, ')')[2];
}

static void *listen_on(void *unused) {
    (void)unused;
    char word[8] = "";
    check_equal(read(ends[0], word, sizeof word), 3);
    return strcmp(word, "go") == 0 ? ends : NULL;
}

static void *run(void *unused) {
    (void)unused;
    pid_t process = getpid(), self = thread_id();
    void *heard = NULL;
    pthread_t listener;
    pthread_join(main_thread, NULL);
    while (state_of_leader() != 'Z') sleep_ms(1);
    must(pipe(ends));
    must(-pthread_create(&listener, NULL, listen_on, NULL));
    must(fcntl(ends[1], F_SETFD, FD_CLOEXEC));
    umask(027);
    ready();
    wait_go();
    if (sabotage()) process++;
    check_equal(getpid(), process);
    check_equal(thread_id(), self);
    check_equal(state_of_leader(), 'Z');
    check_equal(umask(0), 027);
    check_equal(fcntl(ends[1], F_GETFD), FD_CLOEXEC);
    check_equal(write(ends[1], "go", 3), 3);
    pthread_join(listener, &heard);
    check(heard == ends, "the listener heard something else");
    _exit(finish());
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    main_thread = pthread_self();
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    pthread_exit(NULL);
}
