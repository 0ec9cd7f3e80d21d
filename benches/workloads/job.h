/* What every workload has in common: it says when it is ready, notes each time it stood still, and checks itself.
 *
 * All of it goes through small files in a directory that the job was given. None is open for longer than a write, so
 * that they may change between a checkpoint and the restore. Times are CLOCK_REALTIME, which is the same for
 * everybody, also in a time namespace.
 *
 *   ready   the job's pid, when its memory, threads, ... are all there
 *   gaps    a line for each time that the job did not run for a millisecond or more (GAP_NS): from and to, in ns
 *   check   made by the benchmark: the job shall check itself and end
 *   verdict written by the job: "ok", or what is wrong
 */
#ifndef JOB_H
#define JOB_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A beat costs some microseconds: who measures how fast it is itself may have fewer. */
#ifndef BEAT_NS
#define BEAT_NS (100 * 1000)
#endif
enum { GAP_NS = BEAT_NS + 900 * 1000 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void say(const char *name, int flags, const char *text)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        die(name);
    close(fd);
}

/* The number in an argument. */
static inline long number(int argc, char **argv, int index)
{
    if (argc <= index) {
        fprintf(stderr, "usage: %s DIR NUMBER...\n", argv[0]);
        exit(2);
    }
    return atol(argv[index]);
}

/* Goes to the directory that argv[1] names, in a session of its own, without what whoever started the benchmark has left open. */
static void enter(int argc, char **argv)
{
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    setsid();
    if (argc < 2 || chdir(argv[1]) != 0)
        die("cannot enter the directory given as first argument");
}

/* Lives until it is asked to check itself. `check` returns NULL, or what is wrong. */
static int live(const char *(*check)(void))
{
    const struct timespec beat = { .tv_nsec = BEAT_NS };
    char line[64];
    snprintf(line, sizeof line, "%d\n", getpid());
    say("ready.tmp", O_TRUNC, line);
    rename("ready.tmp", "ready");
    for (int64_t last = now_ns(), now; access("check", F_OK) != 0; last = now) {
        nanosleep(&beat, NULL);
        now = now_ns();
        if (now - last >= GAP_NS) {
            snprintf(line, sizeof line, "%lld %lld\n", (long long)last, (long long)now);
            say("gaps", O_APPEND, line);
            now = now_ns();
        }
    }
    const char *wrong = check();
    say("verdict.tmp", O_TRUNC, wrong ? wrong : "ok");
    rename("verdict.tmp", "verdict");
    return wrong != NULL;
}

/* A number that looks random and depends on `index` only. */
static inline uint64_t scatter(uint64_t index)
{
    uint64_t x = index + 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif
