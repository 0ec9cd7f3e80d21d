/* Open files of /proc/self and of a child's directory, and of /dev/urandom. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t child = must(fork());
    if (child == 0) {
        wait_go();
        await_mark("done");
        finish_child();
    }
    char path[64];
    int status = must(open("/proc/self/status", O_RDONLY)), memory = must(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    int directory = must(open("/proc/self/fd", O_RDONLY | O_DIRECTORY)), maps = must(open("/proc/self/maps", O_RDONLY));
    snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
    int of_child = must(open(path, O_RDONLY)), random = must(open("/dev/urandom", O_RDONLY));
    char text[4096] = "", wanted[64];
    must(read(status, text, 5));
    static volatile long word = 4711;
    ready();
    wait_go();

    if (sabotage()) must(dup2(random, status));
    check(pread(status, text, sizeof text - 1, 0) > 0, "read: %s", strerror(errno));
    snprintf(wanted, sizeof wanted, "\nPid:\t%d\n", (int)getpid());
    check(strstr(text, wanted) != NULL, "the status is of another process");
    check_equal(lseek(status, 0, SEEK_CUR), 5);
    long got = 0;
    check_equal(pread(memory, &got, sizeof got, (off_t)&word), sizeof got);
    check_equal(got, 4711);
    got = 4712;
    check_equal(pwrite(memory, &got, sizeof got, (off_t)&word), sizeof got);
    check_equal(word, 4712);
    check(faccessat(directory, "0", F_OK, AT_SYMLINK_NOFOLLOW) == 0, "the directory of descriptors: %s", strerror(errno));
    memset(text, 0, sizeof text);
    check(pread(of_child, text, sizeof text - 1, 0) > 0 && atoi(text) == child, "the child's: %s", text);
    check(read(maps, text, 16) == 16, "maps: %s", strerror(errno));
    check(read(random, text, 16) == 16, "urandom: %s", strerror(errno));
    mark("done");
    reap(child);
    return finish();
}
