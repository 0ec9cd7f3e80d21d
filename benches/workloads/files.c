/* Many open files, each at an offset of its own. */
#include "job.h"
#include <sys/resource.h>

static long count;
static int *fds;

static const char *check(void)
{
    for (long i = 0; i < count; i++) {
        char text[32], expected[32];
        int length = snprintf(expected, sizeof expected, "file %ld", i);
        if (lseek(fds[i], 0, SEEK_CUR) != i % length)
            return "the offset of a file has changed";
        if (pread(fds[i], text, sizeof text, 0) != length || memcmp(text, expected, length) != 0)
            return "a descriptor is open on another file";
    }
    return NULL;
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    count = number(argc, argv, 2);
    struct rlimit limit = { count + 64, count + 64 };
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("setrlimit");
    fds = calloc(count, sizeof *fds);
    if (mkdir("files", 0700) != 0)
        die("mkdir");
    for (long i = 0; i < count; i++) {
        char name[32], text[32];
        snprintf(name, sizeof name, "files/%ld", i);
        int length = snprintf(text, sizeof text, "file %ld", i);
        fds[i] = open(name, O_RDWR | O_CREAT, 0600);
        if (fds[i] < 0 || write(fds[i], text, length) != length || lseek(fds[i], i % length, SEEK_SET) < 0)
            die(name);
    }
    return live(check);
}
