/* System V shared memory: segments with and without key, removed ones, unattached ones, attached read-only, twice and in pieces. */
#include "subject.h"
#include <sys/mman.h>
#include <sys/shm.h>

#define SIZE (20 * 4096)

static void *attach(int id, const void *at, int flags) {
    void *memory = shmat(id, at, flags);
    if (memory == (void *)-1) broken("shmat: %s", strerror(errno));
    return memory;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    key_t key = 0x51000000 | getpid();
    int named = must(shmget(key, SIZE - 100, IPC_CREAT | IPC_EXCL | 0640));
    int private = must(shmget(IPC_PRIVATE, SIZE, 0600)), removed = must(shmget(IPC_PRIVATE, SIZE, 0600));
    int apart = must(shmget(key ^ 0x1000000, 4096, IPC_CREAT | IPC_EXCL | 0600));
    unsigned char *a = attach(named, NULL, 0), *again = attach(named, NULL, SHM_RDONLY), *b = attach(private, NULL, 0);
    unsigned char *c = attach(removed, NULL, 0);
    must(shmctl(removed, IPC_RMID, NULL));
    fill(a, SIZE - 100, 1);
    fill(c, SIZE, 3);
    unsigned char *once = attach(apart, NULL, 0);
    fill(once, 4096, 4);
    must(shmdt(once));
    /* In pieces: one of another protection, one gone. */
    fill(b, SIZE, 2);
    must(mprotect(b + 4096, 4096, PROT_READ));
    must(munmap(b + 3 * 4096, 4096));
    struct shmid_ds stat;
    must(shmctl(private, IPC_STAT, &stat));
    unsigned long attached = stat.shm_nattch;
    volatile uint64_t *counter = (volatile uint64_t *)(c + SIZE - 8);
    *counter = 0;
    pid_t child = must(fork());
    if (child == 0) {
        volatile uint64_t own = 0;
        while (!marked("go")) {
            own++;
            *counter = *counter + 1;
        }
        check(*counter == own || *counter + 1 == own, "shared memory counts %llu, private memory %llu",
              (unsigned long long)*counter, (unsigned long long)own);
        a[5] = 77;
        finish_child();
    }
    while (*counter < 100) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) a[5000] ^= 1;
    reap(child);
    check_equal(again[5], 77);
    unsigned char wanted[SIZE];
    fill(wanted, SIZE - 100, 1);
    wanted[5] = 77;
    check(memcmp(a, wanted, SIZE - 100) == 0 && memcmp(again, wanted, SIZE - 100) == 0, "the content differs");
    fill(wanted, SIZE, 3);
    check(memcmp(c, wanted, SIZE - 8) == 0, "what is removed differs");
    fill(wanted, SIZE, 2);
    check(memcmp(b, wanted, 3 * 4096) == 0 && memcmp(b + 4 * 4096, wanted + 4 * 4096, SIZE - 4 * 4096) == 0,
          "what is in pieces differs");
    char protection[5];
    protection_of(b + 4096, protection);
    check(!strcmp(protection, "r--s"), "protection %s", protection);
    protection_of(b + 3 * 4096, protection);
    check(strcmp(protection, "rw-s") != 0, "a hole has been filled");
    check_equal(mprotect(again, 4096, PROT_READ | PROT_WRITE), -1);

    check_equal(shmget(key, 0, 0), named);
    check_equal(shmget(key ^ 0x1000000, 0, 0), apart);
    must(shmctl(named, IPC_STAT, &stat));
    check_equal(stat.shm_segsz, SIZE - 100);
    check_equal(stat.shm_perm.mode, 0640);
    check_equal(stat.shm_nattch, 2);
    check_equal(stat.shm_cpid, getpid());
    check_equal(shmctl(private, IPC_STAT, &stat), 0);
    check_equal(stat.shm_nattch, attached);
    check_equal(stat.shm_perm.__key, 0);
    once = attach(apart, NULL, 0);
    check_filled(once, 4096, 4);
    check_equal(shmdt(once), 0);
    /* All pieces go with one call, and then what is removed is gone. */
    check_equal(shmdt(b), 0);
    check_equal(shmctl(private, IPC_STAT, &stat), 0);
    check_equal(stat.shm_nattch, 0);
    check_equal(shmctl(removed, IPC_STAT, &stat), 0);
    check_equal(stat.shm_nattch, 1);
    check((stat.shm_perm.mode & SHM_DEST) != 0, "it is not removed");
    check_equal(shmdt(c), 0);
    check_equal(shmctl(removed, IPC_STAT, &stat), -1);
    must(shmctl(named, IPC_RMID, NULL));
    must(shmctl(private, IPC_RMID, NULL));
    must(shmctl(apart, IPC_RMID, NULL));
    return finish();
}
