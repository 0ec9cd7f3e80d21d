/* seccomp(2): filters that a process has inherited, that all its threads have, that one thread has; and strict mode. */
#include "subject.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

/* From now on a system call fails with an error of ours. */
static void forbid(int nr, int error, unsigned long flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    check(result == 0, "seccomp for call %d gave %ld: %s", nr, result, strerror(errno));
}

/* What is sure to fail tells whether a filter has decided. */
static int error_of(int nr) { return syscall(nr, -1, -1, -1) == -1 ? errno : 0; }

static int set_up, looked;

static void *thread(void *argument) {
    forbid(SYS_getpgid, 77, 0);
    __atomic_store_n(&set_up, 1, __ATOMIC_SEQ_CST);
    wait_go();
    check_equal(error_of(SYS_getpgid), 77);
    check_equal(error_of(SYS_getsid), 55);
    while (!__atomic_load_n(&looked, __ATOMIC_SEQ_CST)) sleep_ms(1);
    /* All that the other has is what this one has too: so it may have them all have the same. */
    forbid(SYS_dup, 66, SECCOMP_FILTER_FLAG_TSYNC);
    return argument;
}

/* Answers each word, until one at which it does what it must not. */
__attribute__((noreturn)) static void strict(int in, int out) {
    must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
    char word = 's';
    do {
        if (syscall(SYS_write, out, &word, 1) != 1 || syscall(SYS_read, in, &word, 1) != 1) syscall(SYS_exit, 3);
    } while (word != 'e');
    syscall(SYS_getppid);
    syscall(SYS_exit, 4);
    __builtin_unreachable();
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int to[2], from[2];
    must(pipe(to)), must(pipe(from));
    pid_t confined = must(fork());
    if (confined == 0) strict(to[0], from[1]);
    char word = 0;
    check_equal(read(from[0], &word, 1), 1);

    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    forbid(SYS_getsid, 55, 0);
    pthread_t other;
    must(-pthread_create(&other, NULL, thread, NULL));
    while (!__atomic_load_n(&set_up, __ATOMIC_SEQ_CST)) sleep_ms(1);
    pid_t child = must(fork());
    if (child == 0) {
        forbid(SYS_getpriority, 88, 0);
        mark("child");
        wait_go();
        check_equal(error_of(SYS_getpriority), 88);
        check_equal(error_of(SYS_getsid), 55);
        check_equal(error_of(SYS_getpgid), ESRCH);
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) forbid(SYS_getpgid, 1, 0);
    check_equal(error_of(SYS_getsid), 55);
    check_equal(error_of(SYS_getpgid), ESRCH);
    __atomic_store_n(&looked, 1, __ATOMIC_SEQ_CST);
    pthread_join(other, NULL);
    check_equal(error_of(SYS_dup), 66);
    check_equal(error_of(SYS_getpgid), 77);
    reap(child);
    check_equal(write(to[1], "w", 1), 1);
    check_equal(read(from[0], &word, 1), 1);
    check_equal(word, 'w');
    check_equal(write(to[1], "e", 1), 1);
    int status = 0;
    check_equal(waitpid(confined, &status, 0), confined);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "strict mode ended with status 0x%x", status);
    return finish();
}
