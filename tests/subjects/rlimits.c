/* Every resource limit, soft and hard. */
#include "subject.h"
#include <sys/resource.h>

enum { LIMITS = 16 };

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct rlimit64 before[LIMITS], after;
    for (int i = 0; i < LIMITS; i++) {
        must(syscall(SYS_prlimit64, 0, i, NULL, &before[i]));
        struct rlimit64 lower = before[i];
        if (i == RLIMIT_AS || i == RLIMIT_DATA || i == RLIMIT_MEMLOCK || i == RLIMIT_CPU || i == RLIMIT_FSIZE) {
            if (lower.rlim_cur > 1ull << 46) lower.rlim_cur = (1ull << 45) + (unsigned)i * 4096;
        } else if (i == RLIMIT_NOFILE) {
            lower.rlim_cur = 200;
            if (lower.rlim_max > 3000) lower.rlim_max = 3000;
        } else if (i == RLIMIT_STACK) {
            lower.rlim_cur = 4 << 20;
        } else if (i == RLIMIT_CORE) {
            lower.rlim_cur = 0;
            lower.rlim_max = 1 << 20;
        } else if (lower.rlim_cur > 1000) {
            lower.rlim_cur = 900 + (unsigned)i;
        }
        if (lower.rlim_cur > lower.rlim_max) lower.rlim_cur = lower.rlim_max;
        must(syscall(SYS_prlimit64, 0, i, &lower, NULL));
        must(syscall(SYS_prlimit64, 0, i, NULL, &before[i]));
    }
    ready();
    wait_go();

    if (sabotage()) must(syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &(struct rlimit64){100, 3000}, NULL));
    for (int i = 0; i < LIMITS; i++) {
        must(syscall(SYS_prlimit64, 0, i, NULL, &after));
        check(before[i].rlim_cur == after.rlim_cur && before[i].rlim_max == after.rlim_max,
              "limit %d was %llu of %llu and is %llu of %llu", i, (unsigned long long)before[i].rlim_cur,
              (unsigned long long)before[i].rlim_max, (unsigned long long)after.rlim_cur, (unsigned long long)after.rlim_max);
    }
    return finish();
}
