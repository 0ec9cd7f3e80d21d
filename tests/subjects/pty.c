/* A pseudo-terminal inside the job: settings, window size, data in flight both ways, and a child whose controlling
 * terminal it is. */
#include "subject.h"
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t interrupts;
static void on_interrupt(int signal) { (void)signal, interrupts++; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int master = must(posix_openpt(O_RDWR | O_NOCTTY));
    must(grantpt(master));
    must(unlockpt(master));
    char name[64], name_now[64];
    must(-ptsname_r(master, name, sizeof name));
    int slave = must(open(name, O_RDWR | O_NOCTTY));
    struct termios settings, settings_now;
    must(tcgetattr(slave, &settings));
    cfmakeraw(&settings);
    settings.c_cc[VMIN] = 3;
    settings.c_cc[VTIME] = 7;
    settings.c_oflag |= OPOST | ONLCR;
    must(tcsetattr(slave, TCSANOW, &settings));
    must(tcgetattr(slave, &settings));
    struct winsize size = {33, 101, 5, 6}, size_now;
    must(ioctl(master, TIOCSWINSZ, &size));
    must(write(slave, "out\n", 4) == 4 ? 0 : -1);
    must(write(master, "into", 4) == 4 ? 0 : -1);

    /* A second terminal, the controlling one of a child that leads a session. */
    int second = must(posix_openpt(O_RDWR | O_NOCTTY));
    must(grantpt(second));
    must(unlockpt(second));
    char second_name[64];
    must(-ptsname_r(second, second_name, sizeof second_name));
    pid_t child = must(fork());
    if (child == 0) {
        must(setsid());
        int terminal = must(open(second_name, O_RDWR)); /* becomes the controlling one */
        must(close(master));
        must(close(slave));
        must(close(second));
        signal(SIGINT, on_interrupt);
        must(tcgetpgrp(terminal) == getpgrp() ? 0 : -1);
        mark("child");
        wait_go();
        check_equal(tcgetpgrp(terminal), getpgrp());
        check_equal(tcgetsid(terminal), getsid(0));
        int through = open("/dev/tty", O_RDWR);
        check(through >= 0, "/dev/tty: %s", strerror(errno));
        check_equal(write(through, "tty\n", 4), 4);
        for (int i = 0; i < 2000 && !interrupts; i++) sleep_ms(5);
        check_equal(interrupts, 1);
        char line[16] = "";
        check_equal(read(terminal, line, sizeof line), 5);
        check(memcmp(line, "line\n", 5) == 0, "the child read %s", line);
        finish_child();
    }
    await_mark("child");
    ready();
    wait_go();

    if (sabotage()) must(ioctl(master, TIOCSWINSZ, &(struct winsize){1, 2, 3, 4}));
    check_equal(ptsname_r(master, name_now, sizeof name_now), 0);
    check(strcmp(name, name_now) == 0, "the terminal was %s and is %s", name, name_now);
    check(isatty(slave), "the slave is no terminal");
    must(tcgetattr(slave, &settings_now));
    check(memcmp(&settings, &settings_now, sizeof settings) == 0, "other terminal settings");
    must(ioctl(slave, TIOCGWINSZ, &size_now));
    check(memcmp(&size, &size_now, sizeof size) == 0, "the window is %d x %d", size_now.ws_row, size_now.ws_col);
    char text[64] = "";
    check_equal(read(master, text, sizeof text), 5);
    check(memcmp(text, "out\r\n", 5) == 0, "the master read %s", text);
    check_equal(read(slave, text, sizeof text), 4);
    check(memcmp(text, "into", 4) == 0, "the slave read %s", text);

    check_equal(read(second, text, sizeof text), 5); /* waits until the child has written */
    check(memcmp(text, "tty\r\n", 5) == 0, "the child's terminal shows %s", text);
    check_equal(write(second, "\003", 1), 1); /* ^C, to the child's group */
    sleep_ms(50);
    check_equal(write(second, "line\n", 5), 5);
    reap(child);
    return finish();
}
