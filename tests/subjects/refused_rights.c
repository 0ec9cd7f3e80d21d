/* A file that was opened with rights that the process has given up since. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (geteuid() != 0) skip("only root has rights to give up");
    int fd = must(open("secret", O_RDWR | O_CREAT, 0600));
    must(write(fd, "kept", 4));
    /* Where the test looks for what it says. */
    must(chmod(".", 0777));
    must(setgid(65534));
    must(setuid(65534));
    ready();
    wait_go();
    if (sabotage()) must(ftruncate(fd, 0));
    char text[8] = "";
    check_equal(pread(fd, text, sizeof text, 0), 4);
    check(strcmp(text, "kept") == 0, "the file holds %s", text);
    return finish();
}
