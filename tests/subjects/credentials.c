/* Credentials: real, effective, saved and file-system ids, groups, capability sets, securebits and keepcaps. */
#include "subject.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>

struct identity {
    uid_t user[4], group[4];
    gid_t groups[64];
    int group_count, securebits, keep;
    char inheritable[32], permitted[32], effective[32], bounding[32];
};

static void identify(struct identity *me) {
    memset(me, 0, sizeof *me);
    getresuid(&me->user[0], &me->user[1], &me->user[2]);
    getresgid(&me->group[0], &me->group[1], &me->group[2]);
    me->user[3] = (uid_t)setfsuid((uid_t)-1);
    me->group[3] = (gid_t)setfsgid((gid_t)-1);
    me->group_count = must(getgroups((int)COUNT(me->groups), me->groups));
    me->securebits = prctl(PR_GET_SECUREBITS);
    me->keep = prctl(PR_GET_KEEPCAPS);
    field_of("/proc/thread-self/status", "CapInh", me->inheritable, 32);
    field_of("/proc/thread-self/status", "CapPrm", me->permitted, 32);
    field_of("/proc/thread-self/status", "CapEff", me->effective, 32);
    field_of("/proc/thread-self/status", "CapBnd", me->bounding, 32);
}

static void capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
                                             {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32),
                                              (uint32_t)(inheritable >> 32)}};
    must(syscall(SYS_capset, &header, data));
}

#define BIT(capability) (1ull << (capability))

static void become(int kind) {
    static const gid_t groups[] = {10, 20, 1000, 12345};
    switch (kind) {
        case 0: /* an ordinary user */
            must(setgroups(3, groups));
            must(setresgid(1001, 1001, 1001));
            must(setresuid(1001, 1001, 1001));
            break;
        case 1: /* all ids different, still root underneath */
            must(setgroups(4, groups));
            must(setresgid(1, 2, 3));
            must(setresuid(11, 0, 33));
            setfsgid(4);
            setfsuid(44);
            break;
        case 2: /* root with fewer rights, and a bounding set cut down */
            must(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
            must(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
            capabilities(BIT(CAP_CHOWN) | BIT(CAP_KILL), BIT(CAP_CHOWN) | BIT(CAP_KILL) | BIT(CAP_SETUID) | BIT(CAP_SETPCAP),
                         BIT(CAP_KILL));
            break;
        case 3: /* an ordinary user who kept a capability */
            must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS | SECBIT_NOROOT));
            must(setgroups(0, groups));
            must(setresgid(1002, 1002, 1002));
            must(setresuid(1002, 1002, 1002));
            capabilities(BIT(CAP_NET_BIND_SERVICE), BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_SYS_NICE), 0);
            break;
    }
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct identity before, after;
    if (geteuid() != 0) skip("only root can become others");
    must(chmod(".", 0777));
    pid_t children[4];
    char name[32];
    for (int kind = 0; kind < 4; kind++) {
        if ((children[kind] = must(fork())) == 0) {
            become(kind);
            identify(&before);
            snprintf(name, sizeof name, "kind-%d", kind);
            mark(name);
            wait_go();
            if (sabotage() && kind == 1) must(setgroups(1, (gid_t[]){7}));
            identify(&after);
            for (int i = 0; i < 4; i++) {
                check(before.user[i] == after.user[i], "kind %d: uid %d was %u and is %u", kind, i, before.user[i], after.user[i]);
                check(before.group[i] == after.group[i], "kind %d: gid %d was %u and is %u", kind, i, before.group[i],
                      after.group[i]);
            }
            check_equal(after.group_count, before.group_count);
            check(memcmp(before.groups, after.groups, sizeof before.groups) == 0, "kind %d: other groups", kind);
            check_equal(after.securebits, before.securebits);
            check_equal(after.keep, before.keep);
            check(!strcmp(before.inheritable, after.inheritable), "inheritable %s became %s", before.inheritable, after.inheritable);
            check(!strcmp(before.permitted, after.permitted), "permitted %s became %s", before.permitted, after.permitted);
            check(!strcmp(before.effective, after.effective), "effective %s became %s", before.effective, after.effective);
            check(!strcmp(before.bounding, after.bounding), "bounding %s became %s", before.bounding, after.bounding);
            finish_child();
        }
        snprintf(name, sizeof name, "kind-%d", kind);
        await_mark(name);
    }
    identify(&before);
    ready();
    wait_go();
    identify(&after);
    check(memcmp(&before, &after, sizeof before) == 0, "the root of the tree has another identity");
    for (int kind = 0; kind < 4; kind++) reap(children[kind]);
    return finish();
}
