/* What prctl(2), membarrier(2) and the like have set, of a process and of one thread of it. */
#include "subject.h"
#include <linux/prctl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define MDWE_SET 65
#define MDWE_GET 66
#define MERGE_SET 67
#define MERGE_GET 68
/* linux/membarrier.h */
#define PRIVATE_EXPEDITED (1 << 3)
#define REGISTER_PRIVATE_EXPEDITED (1 << 4)
#define PRIVATE_EXPEDITED_RSEQ (1 << 7)
#define REGISTER_PRIVATE_EXPEDITED_RSEQ (1 << 8)

static int mdwe, merge, locks, ready_thread;

static void *thread(void *argument) {
    must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
    must(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    __atomic_store_n(&ready_thread, 1, __ATOMIC_SEQ_CST);
    wait_go();
    int tsc = 0;
    check_equal(prctl(PR_GET_TSC, &tsc), 0);
    check_equal(tsc, PR_TSC_SIGSEGV);
    check_equal(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
    return argument;
}

/* Between pages without access, so that it is a mapping of its own. */
static void *must_map(void) {
    char *pages = mmap(NULL, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + 4096, 4096, PROT_READ | PROT_WRITE) != 0) broken("mmap: %s", strerror(errno));
    return pages + 4096;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pthread_t other;
    must(-pthread_create(&other, NULL, thread, NULL));
    while (!__atomic_load_n(&ready_thread, __ATOMIC_SEQ_CST)) sleep_ms(1);
    int barriers = syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
    int rseq = syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0;
    locks = mlockall(MCL_FUTURE | MCL_ONFAULT) == 0;
    merge = prctl(MERGE_SET, 1, 0, 0, 0) == 0;
    mdwe = prctl(MDWE_SET, 1, 0, 0, 0) == 0;
    /* PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18. */
    if (prctl(PR_SET_THP_DISABLE, 1, 2, 0, 0) != 0) prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    int huge = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    char filter[32], core[32];
    if (access("/proc/self/coredump_filter", W_OK) == 0) spew("/proc/self/coredump_filter", "0x7d", 4);
    slurp("/proc/self/coredump_filter", filter, sizeof filter);
    if (!barriers) skip("membarrier: %s", strerror(errno));
    ready();
    wait_go();

    if (sabotage()) prctl(PR_SET_TSC, PR_TSC_SIGSEGV), barriers = 0;
    check(syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) == 0 && barriers, "no barriers: %s", strerror(errno));
    check((syscall(SYS_membarrier, PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0) == rseq, "no barriers for rseq");
    check_equal(prctl(MERGE_GET, 0, 0, 0, 0) == 1, merge);
    check_equal(prctl(MDWE_GET, 0, 0, 0, 0) == 1, mdwe);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check((page == MAP_FAILED) == mdwe, "memory that is writable and executable");
    check_equal(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), huge);
    slurp("/proc/self/coredump_filter", core, sizeof core);
    check(strcmp(core, filter) == 0, "its core dumps have %s, and had %s", core, filter);
    char flags[256];
    vm_flags(must_map(), flags, sizeof flags);
    check((strstr(flags, "lo ") != NULL) == locks, "new memory has flags %s", flags);
    int tsc = 0;
    check_equal(prctl(PR_GET_TSC, &tsc), 0);
    check_equal(tsc, PR_TSC_ENABLE);
    pthread_join(other, NULL);
    return finish();
}
