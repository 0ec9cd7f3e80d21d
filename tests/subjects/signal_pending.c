/* Pending signals: of the process and of single threads, queues of real-time signals in order, each with its siginfo. */
#include "subject.h"
#include <pthread.h>

enum { QUEUED = 20 };

static sigset_t all;
static volatile int thread_ready;

/* Takes one pending signal without waiting; its number, or 0. By system call, since libc changes si_code. */
static int take(siginfo_t *info) {
    memset(info, 0, sizeof *info);
    int signal = (int)syscall(SYS_rt_sigtimedwait, &all, info, &(struct timespec){0, 0}, 8);
    return signal < 0 ? 0 : signal;
}

static void *run(void *unused) {
    (void)unused;
    thread_ready = 1;
    wait_go();
    while (!marked("main-done")) sleep_ms(5);
    siginfo_t info;
    check_equal(take(&info), SIGUSR2);
    check_equal(info.si_code, SI_TKILL);
    check_equal(info.si_pid, getpid());
    for (int i = 0; i < 3; i++) {
        check_equal(take(&info), SIGRTMIN + 3);
        check_equal(info.si_value.sival_int, 500 + i);
    }
    check_equal(take(&info), 0);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    sigfillset(&all);
    sigdelset(&all, SIGINT);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_t thread;
    must(-pthread_create(&thread, NULL, run, NULL));
    while (!thread_ready) sleep_ms(1);

    for (int i = 0; i < QUEUED; i++) /* two queues, interleaved */
        must(sigqueue(getpid(), SIGRTMIN + 1 + i % 2, (union sigval){.sival_int = 1000 + i}));
    must(kill(getpid(), SIGUSR1));
    must(kill(getpid(), SIGUSR1)); /* a standard signal pends once */
    siginfo_t made = {.si_signo = SIGRTMIN + 7, .si_code = -77}; /* whatever a sender put there */
    memset((char *)&made + 16, 0x5a, 32); /* the kernel refuses what lies beyond its 48 bytes */
    must(syscall(SYS_rt_sigqueueinfo, getpid(), SIGRTMIN + 7, &made));
    pthread_kill(thread, SIGUSR2);
    for (int i = 0; i < 3; i++) pthread_sigqueue(thread, SIGRTMIN + 3, (union sigval){.sival_int = 500 + i});
    pid_t child = must(fork());
    if (child == 0) _exit(9);
    siginfo_t info;
    must(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT));
    ready();
    wait_go();

    if (sabotage()) take(&info);
    check_equal(take(&info), SIGUSR1);
    check_equal(info.si_code, SI_USER);
    check_equal(info.si_pid, getpid());
    check_equal(info.si_uid, getuid());
    check_equal(take(&info), SIGCHLD);
    check_equal(info.si_code, CLD_EXITED);
    check_equal(info.si_pid, child);
    check_equal(info.si_status, 9);
    for (int queue = 0; queue < 2; queue++)
        for (int i = queue; i < QUEUED; i += 2) {
            check_equal(take(&info), SIGRTMIN + 1 + queue);
            check_equal(info.si_code, SI_QUEUE);
            check_equal(info.si_value.sival_int, 1000 + i);
            check_equal(info.si_pid, getpid());
        }
    check_equal(take(&info), SIGRTMIN + 7);
    check_equal(info.si_code, -77);
    check(memcmp((char *)&info + 16, (char *)&made + 16, 32) == 0, "the sender's part of siginfo differs");
    check_equal(take(&info), 0);
    mark("main-done");
    pthread_join(thread, NULL);
    return finish();
}
