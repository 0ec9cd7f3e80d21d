/* Signals about changes in a directory (F_NOTIFY). The file `descriptor` tells its number. */
#include "subject.h"

static volatile int told;

static void on_change(int signal) {
    (void)signal;
    told++;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    signal(SIGIO, on_change);
    must(mkdir("dir", 0777));
    int fd = must(open("dir", O_RDONLY | O_DIRECTORY));
    if (fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT) != 0) skip("F_NOTIFY: %s", strerror(errno));
    char text[16];
    spew("descriptor", text, (size_t)snprintf(text, sizeof text, "%d", fd));
    ready();
    wait_go();
    if (sabotage()) must(fcntl(fd, F_NOTIFY, 0));
    spew("dir/new", "1", 1);
    for (int i = 0; i < 100 && !told; i++) sleep_ms(10);
    check_equal(told, 1);
    return finish();
}
