/* What every subject shares.
 *
 * A subject sets up one kernel resource, says that it is ready, waits until the file `go` appears, and then checks that
 * everything is still as it was. In between it is checkpointed, killed and restored; it cannot tell, except by what
 * differs. Each difference is a line "DIFF ..." on standard output; the last line is PASS when there was none.
 *
 * With SUBJECT_SABOTAGE set a subject damages its own state at the place where the checkpoint would be, which proves
 * that its checks can fail. */
#ifndef SUBJECT_H
#define SUBJECT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int subject_differences;

/* One whole line per write(2), so that lines of several processes do not mix. */
static void subject_line(const char *kind, const char *format, va_list arguments) {
    char line[1024];
    int length = snprintf(line, sizeof line, "%s [%d] ", kind, (int)getpid());
    length += vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)length) < 0) _exit(3);
}

/* Records a difference unless `condition` holds; returns the condition. */
UNUSED __attribute__((format(printf, 2, 3))) static int check(int condition, const char *format, ...) {
    if (condition) return 1;
    va_list arguments;
    va_start(arguments, format);
    subject_line("DIFF", format, arguments);
    va_end(arguments);
    __atomic_add_fetch(&subject_differences, 1, __ATOMIC_SEQ_CST);
    return 0;
}

/* Compares two integers and says both. */
#define check_equal(actual, expected)                                                                                  \
    do {                                                                                                               \
        long long actual_ = (long long)(actual), expected_ = (long long)(expected);                                    \
        check(actual_ == expected_, "%s is %lld (0x%llx), expected %lld (0x%llx), line %d", #actual, actual_, actual_, \
              expected_, expected_, __LINE__);                                                                         \
    } while (0)

/* Ends the subject because it could not even be set up. */
UNUSED __attribute__((format(printf, 1, 2), noreturn)) static void broken(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    subject_line("BROKEN", format, arguments);
    va_end(arguments);
    _exit(2);
}

/* A call that must succeed for the test to make sense; -1 is failure. */
#define must(call)                                                                              \
    ({                                                                                          \
        __typeof__(call) result_ = (call);                                                      \
        if ((long)result_ == -1) broken("%s: %s, line %d", #call, strerror(errno), __LINE__);   \
        result_;                                                                                \
    })

/* Ends the subject because this machine cannot do what it shows. */
UNUSED __attribute__((format(printf, 1, 2), noreturn)) static void skip(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    subject_line("SKIP", format, arguments);
    va_end(arguments);
    _exit(77);
}

/* Enters the work directory, the first argument. */
static void subject_begin(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s WORKDIR\n", argv[0]);
        exit(2);
    }
    if (chdir(argv[1]) != 0) broken("chdir %s: %s", argv[1], strerror(errno));
}

/* Marks and exceptions between processes: files in the work directory, the one thing that no subject tests. */
UNUSED static void mark(const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) broken("create %s: %s", name, strerror(errno));
    close(fd);
}

UNUSED static int marked(const char *name) { return access(name, F_OK) == 0; }

/* Sleeps `milliseconds` whatever interrupts it. */
UNUSED static void sleep_ms(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* Waits for a mark. */
UNUSED static void await_mark(const char *name) {
    while (!marked(name)) sleep_ms(5);
}

/* Says that all is set up: the checkpoint may come from now on. */
UNUSED static void ready(void) {
    if (write(STDOUT_FILENO, "READY\n", 6) != 6) _exit(3);
    mark("ready");
}

/* Waits for the world to say that the checkpoint is over. */
UNUSED static void wait_go(void) { await_mark("go"); }

/* Whether to damage what the checks look at. */
UNUSED static int sabotage(void) {
    static int wanted = -1;
    if (wanted < 0) wanted = getenv("SUBJECT_SABOTAGE") != NULL;
    return wanted;
}

/* The end of a child: its exit status says whether something differed in it. */
UNUSED __attribute__((noreturn)) static void finish_child(void) { _exit(subject_differences ? 1 : 0); }

/* Waits for a child that ends in `finish_child`. */
UNUSED static void reap(pid_t pid) {
    int status = -1;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {
    }
    check(got == pid, "waitpid(%d) gave %d: %s", (int)pid, (int)got, strerror(errno));
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", (int)pid, status);
}

/* The verdict; use as `return finish();`. */
UNUSED static int finish(void) {
    if (subject_differences) return 1;
    if (write(STDOUT_FILENO, "PASS\n", 5) != 5) return 3;
    return 0;
}

/* The whole of a small file, NUL-terminated, at most `size - 1` bytes; its length. */
UNUSED static size_t slurp(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) broken("open %s: %s", path, strerror(errno));
    size_t length = 0;
    ssize_t n;
    while (length < size - 1 && (n = read(fd, buffer + length, size - 1 - length)) > 0) length += (size_t)n;
    buffer[length] = 0;
    close(fd);
    return length;
}

/* Writes a small file anew. */
UNUSED static void spew(const char *path, const void *data, size_t length) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, data, length) != (ssize_t)length) broken("write %s: %s", path, strerror(errno));
    close(fd);
}

/* The value of "Key:" in a file of such lines (/proc/PID/status), without blanks around it. */
UNUSED static void field_of(const char *path, const char *key, char *value, size_t size) {
    static __thread char text[1 << 16];
    slurp(path, text, sizeof text);
    value[0] = 0;
    size_t key_length = strlen(key);
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, key, key_length) != 0 || line[key_length] != ':') continue;
        char *start = line + key_length + 1;
        start += strspn(start, " \t");
        size_t length = strcspn(start, "\n");
        while (length && (start[length - 1] == ' ' || start[length - 1] == '\t')) length--;
        snprintf(value, size, "%.*s", (int)length, start);
        return;
    }
}

/* The value of "Key:" in /proc/self/smaps for the mapping that starts at `address`; empty when there is none. */
UNUSED static void smaps_field(const void *address, const char *key, char *value, size_t size) {
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) broken("open smaps: %s", strerror(errno));
    char line[4096];
    int inside = 0;
    value[0] = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            if (inside) break;
            inside = start == (unsigned long)address;
        } else if (inside && strncmp(line, key, strlen(key)) == 0 && line[strlen(key)] == ':') {
            char *text = line + strlen(key) + 1;
            text += strspn(text, " \t");
            text[strcspn(text, "\n")] = 0;
            snprintf(value, size, "%s", text);
        }
    }
    fclose(file);
}

/* VmFlags of the mapping at `address`, without those that tracking writes may rightly change. */
UNUSED static void vm_flags(const void *address, char *value, size_t size) {
    char all[512];
    smaps_field(address, "VmFlags", all, sizeof all);
    value[0] = 0;
    for (char *save = NULL, *flag = strtok_r(all, " ", &save); flag; flag = strtok_r(NULL, " ", &save)) {
        if (!strcmp(flag, "sd") || !strcmp(flag, "uw") || !strcmp(flag, "um") || !strcmp(flag, "ui")) continue;
        strncat(value, flag, size - strlen(value) - 1);
        strncat(value, " ", size - strlen(value) - 1);
    }
}

/* One line of /proc/self/maps: permissions of the mapping that holds `address`, or "none". */
UNUSED static void protection_of(const void *address, char value[5]) {
    FILE *file = fopen("/proc/self/maps", "re");
    if (!file) broken("open maps: %s", strerror(errno));
    char line[4096];
    strcpy(value, "none");
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        char permissions[5];
        if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) == 3 && start <= (unsigned long)address &&
            (unsigned long)address < end) {
            strcpy(value, permissions);
            break;
        }
    }
    fclose(file);
}

/* Reproducible bytes that do not compress: xorshift, seeded. */
UNUSED static void fill(void *memory, size_t length, uint64_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    unsigned char *bytes = memory;
    for (size_t i = 0; i < length; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        bytes[i] = (unsigned char)state;
    }
}

/* Where `memory` first differs from `fill(seed)`, or `length`. */
UNUSED static size_t differs_at(const void *memory, size_t length, uint64_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    const unsigned char *bytes = memory;
    for (size_t i = 0; i < length; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (bytes[i] != (unsigned char)state) return i;
    }
    return length;
}

#define check_filled(memory, length, seed)                                                                           \
    do {                                                                                                             \
        size_t at_ = differs_at(memory, length, seed);                                                               \
        check(at_ == (size_t)(length), "%s differs at byte %zu of %zu, line %d", #memory, at_, (size_t)(length), __LINE__); \
    } while (0)

UNUSED static pid_t thread_id(void) { return (pid_t)syscall(SYS_gettid); }

/* CLOCK_MONOTONIC in seconds. */
UNUSED static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

#endif
