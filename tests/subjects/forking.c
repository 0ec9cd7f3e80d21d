/* A process that never stands still: it forks, executes programs and starts threads all the time, and each of these
 * adds to a sum that must be right in the end. */
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>

enum { LANES = 3 };

static char program[4096];
static volatile int stop;
static volatile long rounds[LANES];
static uint64_t sums[LANES];

static void *add(void *argument) {
    uint64_t *sum = argument;
    *sum += 1;
    return NULL;
}

/* A child's contribution comes back as its exit status. */
static void lane_round(int lane, uint64_t *sum) {
    int status;
    pthread_t thread;
    pid_t pid = must(fork());
    if (pid == 0) {
        if (lane == 0) execl(program, program, "add", "3", (char *)NULL);
        if (lane == 1) { /* a grandchild does the work */
            pid_t grandchild = fork();
            if (grandchild == 0) _exit(3);
            if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild || !WIFEXITED(status)) _exit(100);
            _exit(WEXITSTATUS(status));
        }
        _exit(lane == 2 ? 3 : 101);
    }
    must(-pthread_create(&thread, NULL, add, sum));
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) == -1 && errno == EINTR) {
    }
    check(got == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3, "lane %d: wait gave %d, status 0x%x", lane, (int)got,
          status);
    pthread_join(thread, NULL);
    *sum += (uint64_t)WEXITSTATUS(status);
}

static void *run(void *argument) {
    long lane = (long)argument;
    uint64_t sum = 0;
    while (!stop) {
        lane_round((int)lane, &sum);
        rounds[lane]++;
    }
    sums[lane] = sum;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "add") == 0) return atoi(argv[2]);
    subject_begin(argc, argv);
    must(readlink("/proc/self/exe", program, sizeof program - 1));
    pthread_t threads[LANES];
    for (long i = 0; i < LANES; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (rounds[0] < 20 || rounds[1] < 20 || rounds[2] < 20) sleep_ms(1);
    ready();
    wait_go();
    long before[LANES];
    for (int i = 0; i < LANES; i++) before[i] = rounds[i];
    for (int i = 0; i < LANES; i++)
        while (rounds[i] < before[i] + 5 && !subject_differences) sleep_ms(1);
    stop = 1;
    if (sabotage()) sums[0] = 1, rounds[0]++;
    for (int i = 0; i < LANES; i++) {
        pthread_join(threads[i], NULL);
        check_equal(sums[i], 4 * rounds[i]);
    }
    check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child too many");
    return finish();
}
