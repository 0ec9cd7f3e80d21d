/* Signal dispositions: handlers with every flag and mask, ignored and default ones, of all signals. */
#include "subject.h"

/* The kernel's own record, so that SA_RESTORER and the restorer are seen too. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static volatile sig_atomic_t calls, last_value, mask_inside;

static void simple(int signal) { calls += signal; }

static void detailed(int signal, siginfo_t *info, void *context) {
    (void)context;
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    mask_inside = sigismember(&mask, SIGHUP) + 2 * sigismember(&mask, signal);
    last_value = info->si_value.sival_int;
}

static void get(int signal, struct kernel_action *action) {
    memset(action, 0, sizeof *action);
    must(syscall(SYS_rt_sigaction, signal, NULL, action, 8));
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    static const int flags[] = {0,         SA_RESTART,   SA_NODEFER,  SA_RESETHAND,        SA_ONSTACK,
                                SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO, SA_SIGINFO | SA_RESTART | SA_NODEFER};
    struct kernel_action before[65], after;
    for (int signal = 1; signal <= 64; signal++) {
        if (signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33) continue;
        struct sigaction action = {.sa_handler = simple, .sa_flags = flags[signal % (int)COUNT(flags)]};
        sigemptyset(&action.sa_mask);
        sigaddset(&action.sa_mask, signal % 30 + 1);
        sigaddset(&action.sa_mask, SIGRTMIN + signal % 20);
        if (action.sa_flags & SA_SIGINFO) action.sa_sigaction = detailed;
        if (signal % 7 == 3) action.sa_handler = SIG_IGN;
        if (signal % 7 == 5) action.sa_handler = SIG_DFL;
        must(sigaction(signal, &action, NULL));
    }
    struct sigaction action = {.sa_sigaction = detailed, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGHUP);
    must(sigaction(SIGRTMIN + 9, &action, NULL));
    action = (struct sigaction){.sa_handler = simple, .sa_flags = (int)SA_RESETHAND};
    must(sigaction(SIGUSR1, &action, NULL));
    for (int signal = 1; signal <= 64; signal++) get(signal, &before[signal]);
    ready();
    wait_go();

    if (sabotage()) signal(SIGUSR2, SIG_IGN);
    for (int signal = 1; signal <= 64; signal++) {
        get(signal, &after);
        check(memcmp(&before[signal], &after, sizeof after) == 0,
              "signal %d: handler %p flags %lx mask %lx became %p %lx %lx", signal, before[signal].handler,
              before[signal].flags, before[signal].mask, after.handler, after.flags, after.mask);
    }
    calls = 0;
    raise(SIGUSR1);
    check_equal(calls, SIGUSR1);
    get(SIGUSR1, &after);
    check(after.handler == SIG_DFL, "SA_RESETHAND did not reset");
    must(sigqueue(getpid(), SIGRTMIN + 9, (union sigval){.sival_int = 4711}));
    check_equal(last_value, 4711);
    check_equal(mask_inside, 3);
    return finish();
}
