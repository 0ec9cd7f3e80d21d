/* storm CHILDREN FORKS: has children that stay, then forks a process that ends at once again and again, says "over", and waits for the file
 * `go` in its directory. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <signal.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    for (long nth = atol(argv[1]); nth > 0; nth--) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) pause();
        }
    }
    /* The forks of a while come from children that end too: grandchildren are the harder to follow. */
    for (long nth = atol(argv[2]); nth > 0; nth -= 100) {
        pid_t middle = fork();
        if (middle < 0) return 1;
        if (middle == 0) {
            for (int turn = 1; turn < 100; turn++) {
                pid_t child = vfork();
                if (child == 0) _exit(0);
                if (child > 0) waitpid(child, NULL, 0);
            }
            _exit(0);
        }
        waitpid(middle, NULL, 0);
    }
    puts("over");
    fflush(stdout);
    while (access("go", F_OK) != 0) usleep(10000);
    return 0;
}
