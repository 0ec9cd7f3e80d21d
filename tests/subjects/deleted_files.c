/* Files that were deleted while open or mapped, replaced, never named, in a directory that is gone too; and renamed ones. */
#include "subject.h"
#include <sys/mman.h>

#define SIZE (5 * 4096 + 123)

static int filled(const char *name, int flags, uint64_t seed, mode_t mode) {
    unsigned char data[SIZE];
    fill(data, SIZE, seed);
    int fd = must(open(name, flags | O_CREAT, mode));
    must(write(fd, data, SIZE) == SIZE ? 0 : -1);
    return fd;
}

static void same(int fd, uint64_t seed) {
    unsigned char data[SIZE + 1];
    check_equal(pread(fd, data, sizeof data, 0), SIZE);
    check_filled(data, SIZE, seed);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    umask(0);
    int plain = filled("plain", O_RDWR, 1, 0640), writer = filled("writer", O_WRONLY | O_APPEND, 2, 0200);
    int replaced = filled("replaced", O_RDWR, 3, 0666), renamed = filled("renamed", O_RDWR, 4, 0666);
    must(mkdir("dir", 0777));
    int inside = filled("dir/inside", O_RDWR, 5, 0666);
    int named = must(open(".", O_TMPFILE | O_RDWR, 0600));
    must(write(named, "tmpfile", 7));
    int sparse = must(open("sparse", O_RDWR | O_CREAT, 0600));
    must(ftruncate(sparse, 1ll << 32)), must(pwrite(sparse, "x", 1, 1 << 30));
    int mapped = filled("mapped", O_RDWR, 6, 0666);
    unsigned char *memory = must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0));
    unsigned char *private = must(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, mapped, 4096));
    private[0] = 77;
    must(close(mapped));
    int empty = must(open("empty", O_RDWR | O_CREAT, 0600));
    int again = must(open("plain", O_RDONLY | O_CLOEXEC)); /* another open file of the same inode */
    must(unlink("plain")), must(unlink("writer")), must(unlink("sparse")), must(unlink("mapped")), must(unlink("empty"));
    must(unlink("dir/inside")), must(rmdir("dir"));
    spew("other", "other", 5), must(rename("other", "replaced"));
    must(rename("renamed", "new name"));
    must(lseek(plain, 99, SEEK_SET));
    struct stat before, after;
    must(fstat(plain, &before));
    pid_t child = must(fork());
    if (child == 0) {
        mark("child");
        wait_go();
        await_mark("change");
        check_equal(pwrite(plain, "changed", 7, 0), 7);
        memory[1] = 88;
        mark("changed");
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(pwrite(inside, "x", 1, 100));
    same(plain, 1), same(again, 1), same(replaced, 3), same(renamed, 4), same(inside, 5);
    check_equal(lseek(plain, 0, SEEK_CUR), 99);
    check_equal(lseek(again, 0, SEEK_CUR), 0);
    check(write(again, "x", 1) == -1 && errno == EBADF, "the reader writes");
    check_equal(fcntl(again, F_GETFD), FD_CLOEXEC);
    must(fstat(plain, &after));
    check_equal(after.st_mode, before.st_mode);
    check_equal(after.st_nlink, 0);
    check(memcmp(&after.st_mtim, &before.st_mtim, sizeof after.st_mtim) == 0, "the time of the last change differs");
    char byte;
    check(read(writer, &byte, 1) == -1 && errno == EBADF, "the writer reads");
    check_equal(write(writer, "more", 4), 4);
    check_equal(lseek(writer, 0, SEEK_CUR), SIZE + 4);
    must(fstat(writer, &after));
    check_equal(after.st_mode & 07777, 0200);
    check(pread(named, &byte, 1, 6) == 1 && byte == 'e', "the file without a name");
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", named);
    check(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0, "linkat: %s", strerror(errno));
    must(fstat(sparse, &after));
    check_equal(after.st_size, 1ll << 32);
    check(after.st_blocks <= 64, "%lld blocks of the sparse file", (long long)after.st_blocks);
    check(pread(sparse, &byte, 1, 1 << 30) == 1 && byte == 'x', "the byte in the sparse file");
    check_filled(memory, SIZE, 6);
    check_equal(private[0], 77);
    check(memcmp(private + 4096, memory + 8192, 4096) == 0, "the private mapping");
    must(fstat(empty, &after));
    check_equal(after.st_size, 0);
    mark("change");
    await_mark("changed");
    char text[8] = "";
    check(pread(again, text, 7, 0) == 7 && strcmp(text, "changed") == 0, "the child's change is not seen: %s", text);
    check_equal(memory[1], 88);
    reap(child);
    return finish();
}
