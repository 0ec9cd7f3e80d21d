/* A child in control groups of its own, of both versions as far as they are mounted. */
#include "subject.h"
#include <linux/magic.h>
#include <sys/vfs.h>

static const char *const above[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"};

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char made[COUNT(above)][128] = {{0}}, path[512], text[4096], before[4096];
    int count = 0;
    for (size_t i = 0; i < COUNT(above); i++) {
        struct statfs fs;
        if (statfs(above[i], &fs) != 0 || (fs.f_type != CGROUP_SUPER_MAGIC && fs.f_type != CGROUP2_SUPER_MAGIC)) continue;
        snprintf(path, sizeof path, "%s/cgroup.procs", above[i]);
        if (access(path, W_OK) != 0) continue;
        snprintf(made[i], sizeof made[i], "%s/subject-%d", above[i], (int)getpid());
        if (mkdir(made[i], 0755) != 0) broken("mkdir %s: %s", made[i], strerror(errno));
        snprintf(path, sizeof path, "%s/pids.max", made[i]);
        if (access(path, W_OK) == 0) spew(path, "77", 2);
        count++;
    }
    if (!count) skip("no control groups that may be changed");
    pid_t child = must(fork());
    if (child == 0) {
        for (size_t i = 0; i < COUNT(above); i++) {
            if (!*made[i]) continue;
            snprintf(path, sizeof path, "%s/cgroup.procs", made[i]);
            spew(path, "0", 1);
        }
        slurp("/proc/self/cgroup", before, sizeof before);
        mark("child");
        wait_go();
        if (sabotage()) {
            for (size_t i = 0; i < COUNT(above); i++) {
                if (!*made[i]) continue;
                snprintf(path, sizeof path, "%s/cgroup.procs", above[i]);
                spew(path, "0", 1);
            }
        }
        slurp("/proc/self/cgroup", text, sizeof text);
        check(strcmp(text, before) == 0, "control groups are now %s, were %s", text, before);
        for (size_t i = 0; i < COUNT(above); i++) {
            snprintf(path, sizeof path, "%s/pids.max", made[i]);
            if (!*made[i] || access(path, R_OK) != 0) continue;
            slurp(path, text, sizeof text);
            check_equal(atoi(text), 77);
        }
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();
    reap(child);
    for (size_t i = 0; i < COUNT(above); i++)
        if (*made[i]) check(rmdir(made[i]) == 0, "rmdir %s: %s", made[i], strerror(errno));
    return finish();
}
