/* Occupies process ids, so that a restore finds them taken: `holdpid PID...`.
 *
 * Says HELD when all are taken (by us or by others), and holds them until it is killed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        pid_t wanted = atoi(argv[i]);
        struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
        pid_t parent = getpid();
        pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            prctl(PR_SET_NAME, "holdpid-child");
            if (getppid() != parent) return 1;
            for (;;) pause();
        }
        if (pid < 0 && errno != EEXIST) {
            fprintf(stderr, "holdpid: pid %d: %s\n", (int)wanted, strerror(errno));
            return 1;
        }
    }
    puts("HELD");
    fflush(stdout);
    for (;;) pause();
}
