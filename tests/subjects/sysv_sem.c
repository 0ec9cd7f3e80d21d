/* System V semaphores: ids, keys, values, who changed them last, and a process that waits for one. */
#include "subject.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int change(int id, unsigned short nth, short by) {
    struct sembuf operation = {nth, by, 0};
    int result;
    /* Any stop interrupts semop(2): signal(7). */
    while ((result = semop(id, &operation, 1)) == -1 && errno == EINTR) {
    }
    return result;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    key_t key = 0x52000000 | getpid();
    int id = must(semget(key, 4, IPC_CREAT | IPC_EXCL | 0640)), private = must(semget(IPC_PRIVATE, 2, 0600));
    must(semctl(id, 0, SETVAL, 7));
    must(change(id, 1, 32767));
    must(change(id, 1, -7));
    must(semctl(private, 1, SETVAL, 3));
    pid_t child = must(fork());
    if (child == 0) {
        must(change(id, 2, 5));
        mark("changed");
        check_equal(change(id, 3, -2), 0);
        finish_child();
    }
    await_mark("changed");
    while (semctl(id, 3, GETNCNT) != 1) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) must(change(id, 0, 1));
    check_equal(semget(key, 0, 0), id);
    check_equal(semctl(id, 0, GETVAL), 7);
    check_equal(semctl(id, 1, GETVAL), 32760);
    check_equal(semctl(id, 2, GETVAL), 5);
    check_equal(semctl(id, 0, GETPID), getpid());
    check_equal(semctl(id, 2, GETPID), child);
    check_equal(semctl(private, 0, GETVAL), 0);
    check_equal(semctl(private, 1, GETVAL), 3);
    struct semid_ds stat, other;
    must(semctl(id, 0, IPC_STAT, &stat));
    must(semctl(private, 0, IPC_STAT, &other));
    check_equal(stat.sem_perm.mode, 0640);
    check_equal(stat.sem_nsems, 4);
    check(stat.sem_otime != 0 && other.sem_otime == 0, "times of use %ld, %ld", (long)stat.sem_otime, (long)other.sem_otime);
    check_equal(change(id, 3, 2), 0);
    reap(child);
    check_equal(semctl(id, 3, GETVAL), 0);
    must(semctl(id, 0, IPC_RMID));
    must(semctl(private, 0, IPC_RMID));
    return finish();
}
