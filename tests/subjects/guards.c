/* Guard pages, of both kinds: a handler still sees the fault, and its address. */
#include "subject.h"
#include <setjmp.h>
#include <sys/mman.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
enum { PAGE = 4096 };

static sigjmp_buf back;
static void *volatile fault_address;
static volatile int fault_code;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    fault_address = info->si_addr;
    fault_code = info->si_code;
    siglongjmp(back, 1);
}

static void expect_fault(volatile char *address, int code, const char *what) {
    if (sigsetjmp(back, 1) == 0) {
        *address = 1;
        check(0, "%s: no fault", what);
        return;
    }
    check(fault_address == address, "%s: the fault is at %p, not %p", what, fault_address, (void *)address);
    check(fault_code == code, "%s: code %d, not %d", what, fault_code, code);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    char *memory = must(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(memory, 16 * PAGE, 1);
    must(mprotect(memory + 15 * PAGE, PAGE, PROT_NONE));
    char *guarded = must(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fill(guarded, 16 * PAGE, 2);
    int light = madvise(guarded + 4 * PAGE, 2 * PAGE, MADV_GUARD_INSTALL) == 0;
    /* In mappings of files since Linux 6.15. */
    int file = must(open("file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    must(ftruncate(file, 4 * PAGE));
    char *others[3];
    for (int i = 0; i < 3; i++) {
        int flags = i == 0 ? MAP_PRIVATE : i == 1 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS;
        others[i] = must(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, flags, i < 2 ? file : -1, 0));
        if (madvise(others[i] + PAGE, PAGE, MADV_GUARD_INSTALL) != 0) others[i] = NULL;
    }
    char *nothing = must(mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    must(munmap(nothing, PAGE));
    ready();
    wait_go();

    if (sabotage()) must(mprotect(memory + 15 * PAGE, PAGE, PROT_READ | PROT_WRITE));
    expect_fault(memory + 15 * PAGE + 3, SEGV_ACCERR, "PROT_NONE");
    expect_fault(nothing, SEGV_MAPERR, "nothing mapped");
    check(differs_at(memory, 16 * PAGE - PAGE, 1) == 15 * PAGE, "memory beside the guard differs");
    for (int i = 0; i < 3; i++) {
        if (!others[i]) continue;
        expect_fault(others[i] + PAGE, SEGV_MAPERR, i == 0 ? "private file" : i == 1 ? "shared file" : "shared");
        others[i][0] = 1, others[i][2 * PAGE] = 2;
    }
    if (light) {
        expect_fault(guarded + 4 * PAGE, SEGV_MAPERR, "light guard");
        expect_fault(guarded + 6 * PAGE - 1, SEGV_MAPERR, "light guard");
        check(differs_at(guarded, 4 * PAGE, 2) == 4 * PAGE, "memory before the light guard differs");
        guarded[6 * PAGE] = 5;
        must(madvise(guarded + 4 * PAGE, 2 * PAGE, MADV_GUARD_REMOVE));
        check_equal(guarded[4 * PAGE], 0);
    }
    return finish();
}
