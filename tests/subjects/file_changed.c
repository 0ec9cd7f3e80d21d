/* A log that the job goes on writing: after the checkpoint, before it is killed, it appends more, which a restore has
 * to cut off again. The world tells it when. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int log = must(open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644));
    must(write(log, "before\n", 7));
    ready();
    while (!marked("go")) {
        if (marked("more") && !marked("appended")) { /* only in the run that will be lost */
            must(write(log, "lost\n", 5));
            mark("appended");
        }
        sleep_ms(5);
    }
    must(write(log, "after\n", 6));
    char text[64];
    size_t length = slurp("log", text, sizeof text);
    if (sabotage()) length--;
    check(length == 13 && memcmp(text, "before\nafter\n", 13) == 0, "the log reads %s", text);
    return finish();
}
