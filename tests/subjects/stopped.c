/* A stopped process stays stopped until it is told to go on. */
#include "subject.h"

static char state_of(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    slurp(path, text, sizeof text);
    return strrchr(text, ')')[2];
}

static volatile sig_atomic_t continued;
static void on_continue(int signal) { (void)signal, continued++; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    pid_t children[2];
    static const int signals[] = {SIGSTOP, SIGTSTP};
    for (int i = 0; i < 2; i++) {
        if ((children[i] = must(fork())) == 0) {
            must(setpgid(0, 0)); /* not orphaned: SIGTSTP works */
            signal(SIGCONT, on_continue);
            mark(i ? "child-1" : "child-0");
            while (!continued) sleep_ms(5);
            check(marked("go"), "child %d ran on before it was told to", i);
            finish_child();
        }
        await_mark(i ? "child-1" : "child-0");
        must(kill(children[i], signals[i]));
        while (state_of(children[i]) != 'T') sleep_ms(1);
    }
    int status;
    must(waitpid(children[0], &status, WUNTRACED)); /* one stop reported before, one not yet */
    ready();
    if (sabotage()) must(kill(children[0], SIGCONT));
    wait_go();

    sleep_ms(50);
    check(state_of(children[0]) == 'T' && state_of(children[1]) == 'T', "states %c and %c", state_of(children[0]),
          state_of(children[1]));
    for (int i = 0; i < 2; i++) {
        must(kill(children[i], SIGCONT));
        reap(children[i]);
    }
    return finish();
}
