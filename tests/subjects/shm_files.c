/* Shared memory with a name (shm_open): a child counts there and in its own memory, which must go back together. And a semaphore with one
 * (sem_open), which the C library maps under another name than it then gives to it. */
#include "subject.h"
#include <semaphore.h>
#include <sys/mman.h>

#define SIZE (64 << 10)

struct counts {
    uint64_t own, shared;
};

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char name[64], gone[80];
    snprintf(name, sizeof name, "/subject-%d", (int)getpid());
    snprintf(gone, sizeof gone, "/subject-%d-gone", (int)getpid());
    int fd = must(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0640)), reader = must(shm_open(name, O_RDONLY, 0));
    must(ftruncate(fd, SIZE));
    unsigned char *memory = must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    const unsigned char *view = must(mmap(NULL, SIZE, PROT_READ, MAP_SHARED, reader, 0));
    must(close(fd));
    fill(memory + 4096, SIZE - 4096, 1);
    int deleted = must(shm_open(gone, O_RDWR | O_CREAT | O_EXCL, 0600));
    must(ftruncate(deleted, 100));
    unsigned char *nameless = must(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, deleted, 0));
    must(shm_unlink(gone));
    memcpy(nameless, "nameless", 8);
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 2);
    check(semaphore != SEM_FAILED, "sem_open: %s", strerror(errno));
    volatile uint64_t *counter = (volatile uint64_t *)memory;
    pid_t child = must(fork());
    if (child == 0) {
        volatile uint64_t own = 0;
        while (!marked("go")) {
            own++;
            *counter = *counter + 1;
        }
        check(*counter == own || *counter + 1 == own, "shared memory counts %llu, private memory %llu",
              (unsigned long long)*counter, (unsigned long long)own);
        check(memcmp(nameless, "nameless", 8) == 0, "what has no name any more");
        memory[SIZE - 1] = 99;
        nameless[0] = 'N';
        finish_child();
    }
    while (*counter < 100) sleep_ms(1);
    ready();
    wait_go();

    if (sabotage()) memory[5000] ^= 1;
    reap(child);
    check_equal(view[SIZE - 1], 99);
    unsigned char byte = 0;
    check(pread(reader, &byte, 1, SIZE - 1) == 1 && byte == 99, "the descriptor and the mapping differ");
    memory[SIZE - 1] = 0;
    unsigned char *wanted = must(malloc(SIZE - 4096));
    fill(wanted, SIZE - 4096, 1);
    check(memcmp(wanted, memory + 4096, SIZE - 4097) == 0, "the content differs");
    check_equal(nameless[0], 'N');
    struct stat stat;
    must(fstat(deleted, &stat));
    check_equal(stat.st_size, 100);
    check_equal(stat.st_nlink, 0);
    int again = shm_open(name, O_RDWR, 0);
    check(again >= 0, "shm_open: %s", strerror(errno));
    must(fstat(again, &stat));
    check_equal(stat.st_size, SIZE);
    check_equal(stat.st_mode & 07777, 0640);
    check(pread(again, &byte, 1, 4096) == 1 && byte == memory[4096], "by its name it is another one");
    check_equal(shm_unlink(name), 0);
    int value = 0;
    /* As another process opens it: sem_open gives this one what it has. */
    snprintf(gone, sizeof gone, "/sem.%s", name + 1);
    sem_t *same = must(mmap(NULL, sizeof *same, PROT_READ | PROT_WRITE, MAP_SHARED, must(shm_open(gone, O_RDWR, 0)), 0));
    check_equal(sem_unlink(name), 0);
    must(sem_post(same));
    must(sem_getvalue(semaphore, &value));
    check_equal(value, 3);
    return finish();
}
