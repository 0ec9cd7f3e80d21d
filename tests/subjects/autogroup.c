/* The nice value of the scheduling group of a session of the job's (sched(7)), seen from two processes in it. */
#include "subject.h"

#define OWN "/proc/self/autogroup"

static int nice_of_session(void) {
    char text[100];
    slurp(OWN, text, sizeof text);
    const char *nice = strstr(text, "nice ");
    return nice ? atoi(nice + 5) : 1000;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (access(OWN, R_OK) != 0) skip("no autogroups");
    pid_t leader = must(fork());
    if (leader == 0) {
        must(setsid());
        int fd = must(open(OWN, O_RDWR | O_CLOEXEC));
        must(write(fd, "7", 1));
        close(fd);
        pid_t member = must(fork());
        if (member == 0) {
            mark("set");
            wait_go();
            check_equal(nice_of_session(), sabotage() ? 8 : 7);
            finish_child();
        }
        wait_go();
        check_equal(nice_of_session(), 7);
        reap(member);
        finish_child();
    }
    await_mark("set");
    ready();
    wait_go();
    reap(leader);
    return finish();
}
