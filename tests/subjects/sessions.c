/* Sessions and process groups, with leaders that live and leaders that are gone. */
#include "subject.h"

/* The session and group that the job was started in are not part of it: a restored job is in those of its restore, and
 * all that matters is that it is so with its parent. */
enum { OUTSIDE = -2, OWN = -1 };

static void who_am_i(pid_t group, pid_t session) {
    check_equal(getpgrp(), group == OUTSIDE ? getpgid(getppid()) : group);
    check_equal(getsid(0), session == OUTSIDE ? getsid(getppid()) : session);
}

/* A child that waits and then checks its own group and session. */
static pid_t member(const char *name, pid_t group, pid_t session) {
    pid_t pid = must(fork());
    if (pid != 0) return pid;
    if (group == OWN) must(setpgid(0, 0)), group = getpid();
    else if (group != OUTSIDE && group != getpgrp()) must(setpgid(0, group));
    mark(name);
    wait_go();
    if (sabotage() && strcmp(name, "same-group") == 0) setpgid(0, 0);
    who_am_i(group, session);
    finish_child();
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t inherits = member("inherits", OUTSIDE, OUTSIDE);

    /* A group of our session: a leader that lives and a member. */
    pid_t leader = member("leader", OWN, OUTSIDE);
    await_mark("leader");
    pid_t same = member("same-group", leader, OUTSIDE);

    /* A group whose leader has ended and been waited for. */
    pid_t ended = must(fork());
    if (ended == 0) {
        must(setpgid(0, 0));
        mark("ended-leader");
        await_mark("leaderless-group");
        _exit(0);
    }
    await_mark("ended-leader");
    pid_t leaderless = member("leaderless-group", ended, OUTSIDE);
    must(waitpid(ended, NULL, 0));

    /* A session with several groups, its leader alive. */
    pid_t chief = must(fork());
    if (chief == 0) {
        must(setsid());
        pid_t me = getpid();
        pid_t first = member("session-first", me, me), second = member("session-second", OWN, me);
        await_mark("session-first");
        await_mark("session-second");
        mark("session");
        wait_go();
        who_am_i(me, me);
        reap(first);
        reap(second);
        finish_child();
    }

    /* A session whose leader is gone: its two children live on, one still in the leader's group, one in its own. */
    pid_t gone = must(fork());
    if (gone == 0) {
        must(setsid());
        pid_t me = getpid();
        for (int i = 0; i < 2; i++)
            if (must(fork()) == 0) {
                char done[32], left[32];
                snprintf(left, sizeof left, "left-%d", i);
                snprintf(done, sizeof done, "left-%d.done", i);
                if (i) must(setpgid(0, 0));
                pid_t group = getpgrp();
                mark(left);
                wait_go();
                who_am_i(group, me);
                if (!subject_differences) mark(done);
                finish_child();
            }
        await_mark("left-0");
        await_mark("left-1");
        _exit(0);
    }
    must(waitpid(gone, NULL, 0));

    const char *marks[] = {"inherits", "same-group", "leaderless-group", "session"};
    for (size_t i = 0; i < COUNT(marks); i++) await_mark(marks[i]);
    ready();
    wait_go();

    reap(inherits);
    reap(leader);
    reap(same);
    reap(leaderless);
    reap(chief);
    for (int i = 0; i < 200 && !(marked("left-0.done") && marked("left-1.done")); i++) sleep_ms(50);
    check(marked("left-0.done") && marked("left-1.done"), "the session without a leader is not as it was");
    return finish();
}
