/* memfds: content, size, seals, names, offsets; shared with a child, mapped shared and private, open more than once. */
#include "subject.h"
#include <sys/mman.h>

#define SIZE (3 * 4096 + 100)

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int plain = must(memfd_create("plain", MFD_CLOEXEC)), sealed = must(memfd_create("a name", MFD_ALLOW_SEALING));
    int sparse = must(memfd_create("", 0)), mapped = must(memfd_create("mapped", MFD_ALLOW_SEALING));
    int copied = must(memfd_create("copied", 0)), closed = must(memfd_create("closed", 0));
    unsigned char data[SIZE];
    fill(data, SIZE, 1);
    must(write(plain, data, SIZE) == SIZE ? 0 : -1);
    must(lseek(plain, 777, SEEK_SET));
    must(fchmod(plain, 0640));
    fill(data, SIZE, 2);
    must(write(sealed, data, SIZE) == SIZE ? 0 : -1);
    must(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
    must(ftruncate(sparse, 1ll << 33));
    must(pwrite(sparse, "end", 3, (1ll << 33) - 3) == 3 ? 0 : -1);
    must(ftruncate(mapped, 1 << 20)), must(ftruncate(copied, 8192)), must(ftruncate(closed, 8192));
    unsigned char *memory = must(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0));
    unsigned char *own = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, copied, 0));
    unsigned char *only = must(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0));
    must(fcntl(mapped, F_ADD_SEALS, F_SEAL_SHRINK));
    fill(memory, 1 << 20, 3);
    must(pwrite(copied, "file", 4, 0) == 4 ? 0 : -1), must(pwrite(copied, "file", 4, 4096) == 4 ? 0 : -1);
    memcpy(own, "mine", 4);
    memcpy(only, "only", 4);
    must(close(closed));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    int reader = must(open(path, O_RDONLY));
    int duplicate = must(dup(sealed));
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        wait_go();
        check_filled(memory, 1 << 20, 3);
        memory[5] = 55;
        mark("changed");
        finish_child();
    }
    await_mark("child");
    struct stat before, after;
    must(fstat(sealed, &before));
    ready();
    wait_go();

    if (sabotage()) must(pwrite(plain, "x", 1, 3000));
    check_equal(lseek(plain, 0, SEEK_CUR), 777);
    check_equal(lseek(reader, 0, SEEK_CUR), 0);
    check_equal(read(reader, data, SIZE), SIZE);
    check_filled(data, SIZE, 1);
    check(write(reader, "x", 1) == -1 && errno == EBADF, "the reader writes");
    must(fstat(plain, &after));
    check_equal(after.st_size, SIZE);
    check_equal(after.st_mode & 07777, 0640);
    check_equal(after.st_nlink, 0);
    check_equal(fcntl(plain, F_GETFD), FD_CLOEXEC);
    check_equal(fcntl(plain, F_GET_SEALS), F_SEAL_SEAL);
    check_equal(fcntl(sealed, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
    check_equal(lseek(duplicate, 0, SEEK_CUR), SIZE);
    check_equal(pread(sealed, data, SIZE, 0), SIZE);
    check_filled(data, SIZE, 2);
    must(fstat(sealed, &after));
    check(memcmp(&after.st_mtim, &before.st_mtim, sizeof after.st_mtim) == 0, "the time of the last change differs");
    check(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM, "what is sealed can be written");
    char link[128] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", sealed);
    must(readlink(path, link, sizeof link - 1));
    check(strcmp(link, "/memfd:a name (deleted)") == 0, "its name is %s", link);
    must(fstat(sparse, &after));
    check_equal(after.st_size, 1ll << 33);
    check(after.st_blocks < 64, "%lld blocks of a sparse one", (long long)after.st_blocks);
    check(pread(sparse, data, 4, (1ll << 33) - 4) == 4 && memcmp(data, "\0end", 4) == 0, "the end of the sparse one");
    check(memcmp(own, "mine", 4) == 0 && memcmp(own + 4096, "file", 4) == 0, "the private mapping");
    check(pread(copied, data, 4, 0) == 4 && memcmp(data, "file", 4) == 0, "the file below the private mapping");
    check(memcmp(only, "only", 4) == 0, "what is only mapped");
    check_equal(fcntl(mapped, F_GET_SEALS), F_SEAL_SHRINK);
    await_mark("changed");
    check_equal(memory[5], 55);
    check(pread(mapped, data, 1, 5) == 1 && data[0] == 55, "the descriptor and the mapping differ");
    reap(child);
    return finish();
}
