/* Puts a uprobe into the code of a process, says PROBED, and takes it out when it is killed. uprobe PID FILE OFFSET */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "re");
    int type = 0;
    if (!file || fscanf(file, "%d", &type) != 1) {
        puts("this kernel has no uprobes");
        return 1;
    }
    struct perf_event_attr probe = {.type = (unsigned)type, .size = sizeof probe};
    probe.config1 = (uintptr_t)argv[2];
    probe.config2 = strtoull(argv[3], NULL, 10);
    if (syscall(SYS_perf_event_open, &probe, atoi(argv[1]), -1, -1, 0) < 0) {
        printf("perf_event_open: %s\n", strerror(errno));
        return 1;
    }
    puts("PROBED");
    fflush(stdout);
    for (;;) pause();
}
