/* A semaphore that a process will give back when it ends (SEM_UNDO). */
#include "subject.h"
#include <sys/ipc.h>
#include <sys/sem.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int id = must(semget(IPC_PRIVATE, 1, 0600));
    must(semctl(id, 0, SETVAL, 3));
    pid_t child = must(fork());
    if (child == 0) {
        must(semop(id, &(struct sembuf){0, -2, SEM_UNDO}, 1));
        char text[16];
        spew("pid", text, (size_t)snprintf(text, sizeof text, "%d", (int)getpid()));
        mark("taken");
        wait_go();
        finish_child();
    }
    await_mark("taken");
    ready();
    wait_go();
    if (sabotage()) must(semctl(id, 0, SETVAL, 0));
    reap(child);
    check_equal(semctl(id, 0, GETVAL), 3);
    must(semctl(id, 0, IPC_RMID));
    return finish();
}
