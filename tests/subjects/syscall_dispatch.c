/* PR_SET_SYSCALL_USER_DISPATCH: on in two threads, one of them caught with its calls blocked. */
#include "subject.h"
#include <pthread.h>
#include <sys/prctl.h>

#define PR_SET_SYSCALL_USER_DISPATCH 59

static __thread volatile char blocked;
static __thread volatile int caught;
static volatile int spinning, stop;

static void on_system_call(int signal) {
    (void)signal;
    blocked = 0;
    caught++;
}

static void *spin(void *argument) {
    must(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &blocked));
    blocked = 1;
    spinning = 1;
    while (!stop) {
    }
    syscall(SYS_getppid);
    check_equal(caught, 1);
    return argument;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_handler = on_system_call};
    must(sigaction(SIGSYS, &action, NULL));
    if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &blocked) != 0) skip("prctl: %s", strerror(errno));
    pthread_t other;
    must(-pthread_create(&other, NULL, spin, NULL));
    while (!spinning) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) must(prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0));
    stop = 1;
    pthread_join(other, NULL);
    check_equal(caught, 0);
    blocked = 1;
    pid_t parent = (pid_t)syscall(SYS_getppid);
    blocked = 0;
    check_equal(caught, 1);
    (void)parent;
    return finish();
}
