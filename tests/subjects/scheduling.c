/* Scheduling of single threads: nice values, policies, affinity, I/O priority, timer slack. */
#include "subject.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { THREADS = 6, IOPRIO_WHO_PROCESS = 1 };

struct attributes { /* sched_attr of sched_setattr(2) */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t util_min, util_max;
};
struct settings {
    struct attributes attributes;
    int nice, io_priority, slack;
    cpu_set_t affinity;
};

static volatile int set_up;

static void look(struct settings *found) {
    memset(found, 0, sizeof *found);
    must(syscall(SYS_sched_getattr, 0, &found->attributes, sizeof found->attributes, 0));
    found->nice = getpriority(PRIO_PROCESS, 0);
    found->io_priority = must((int)syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
    found->slack = prctl(PR_GET_TIMERSLACK);
    must(sched_getaffinity(0, sizeof found->affinity, &found->affinity));
}

static void *run(void *argument) {
    long number = (long)argument;
    struct sched_param none = {0}, first = {.sched_priority = 7};
    struct settings before, after;
    switch (number) {
        case 0: setpriority(PRIO_PROCESS, 0, 7); break;
        case 1: must(sched_setscheduler(0, SCHED_BATCH, &none)); break;
        case 2: must(sched_setscheduler(0, SCHED_IDLE, &none)); break;
        case 3: /* refused to ordinary users */
            if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) != 0) setpriority(PRIO_PROCESS, 0, 3);
            break;
        case 4: {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(must(sched_getcpu()), &one);
            must(sched_setaffinity(0, sizeof one, &one));
            break;
        }
        case 5: must(prctl(PR_SET_TIMERSLACK, 123456)); break;
    }
    must(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, number % 2 ? 2 << 13 | (int)number : 3 << 13));
    look(&before);
    __atomic_add_fetch(&set_up, 1, __ATOMIC_SEQ_CST);
    wait_go();
    if (sabotage() && number == 5) prctl(PR_SET_TIMERSLACK, 1);
    look(&after);
    check(before.attributes.policy == after.attributes.policy && before.attributes.priority == after.attributes.priority &&
              before.attributes.flags == after.attributes.flags,
          "thread %ld: policy %u priority %u flags %lx became %u, %u, %lx", number, before.attributes.policy,
          before.attributes.priority, before.attributes.flags, after.attributes.policy, after.attributes.priority,
          after.attributes.flags);
    check_equal(after.nice, before.nice);
    check_equal(after.io_priority, before.io_priority);
    check_equal(after.slack, before.slack);
    check(CPU_EQUAL(&before.affinity, &after.affinity), "thread %ld: other CPUs", number);
    return NULL;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) must(-pthread_create(&threads[i], NULL, run, (void *)i));
    while (set_up < THREADS) sleep_ms(1);
    ready();
    wait_go();
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    return finish();
}
