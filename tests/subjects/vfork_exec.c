/* A storm of vfork and exec, as make and shells make it: parents stand in vfork, children are between their two
 * programs, at whatever moment one looks. */
#include "subject.h"
#include <pthread.h>
#include <spawn.h>

extern char **environ;

enum { LANES = 2 };

static char program[4096];
static volatile int stop;
static volatile long rounds[LANES];

static void *run(void *argument) {
    long lane = (long)argument;
    char *arguments[] = {program, "be", lane ? "7" : "8", NULL};
    while (!stop) {
        pid_t pid;
        int status = 0;
        if (lane) {
            must(-posix_spawn(&pid, program, NULL, NULL, arguments, environ));
        } else {
            pid = must(vfork());
            if (pid == 0) {
                execv(program, arguments);
                _exit(99);
            }
        }
        pid_t got;
        while ((got = waitpid(pid, &status, 0)) == -1 && errno == EINTR) {
        }
        if (!check(got == pid && WIFEXITED(status) && WEXITSTATUS(status) == (lane ? 7 : 8), "lane %ld: wait gave %d, status 0x%x",
                   lane, (int)got, status))
            break;
        rounds[lane]++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "be") == 0) {
        usleep(500);
        return atoi(argv[2]);
    }
    subject_begin(argc, argv);
    must(readlink("/proc/self/exe", program, sizeof program - 1));
    pthread_t threads[LANES];
    for (long i = 0; i < LANES; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (rounds[0] < 20 || rounds[1] < 20) sleep_ms(1);
    ready();
    wait_go();
    if (sabotage()) strcpy(program, "/bin/false");
    long before[LANES] = {rounds[0], rounds[1]};
    for (int i = 0; i < LANES; i++)
        while (rounds[i] < before[i] + 5 && !subject_differences) sleep_ms(1);
    stop = 1;
    for (int i = 0; i < LANES; i++) pthread_join(threads[i], NULL);
    return finish();
}
