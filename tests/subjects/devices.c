/* Devices without state: null, zero, full, random, urandom. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int null = must(open("/dev/null", O_RDWR)), zero = must(open("/dev/zero", O_RDONLY));
    int full = must(open("/dev/full", O_WRONLY | O_CLOEXEC)), random = must(open("/dev/random", O_RDONLY | O_NONBLOCK));
    int urandom = must(open("/dev/urandom", O_RDONLY)), again = must(dup(urandom));
    int flags = fcntl(random, F_GETFL);
    ready();
    wait_go();

    if (sabotage()) must(dup2(null, zero));
    char buffer[64];
    memset(buffer, 1, sizeof buffer);
    check_equal(read(null, buffer, 64), 0);
    check_equal(write(null, buffer, 64), 64);
    check_equal(read(zero, buffer, 64), 64);
    for (int i = 0; i < 64; i++)
        if (buffer[i]) {
            check(0, "/dev/zero gives %d", buffer[i]);
            break;
        }
    check(write(full, buffer, 1) == -1 && errno == ENOSPC, "/dev/full is not full");
    check_equal(fcntl(full, F_GETFD), FD_CLOEXEC);
    check_equal(fcntl(random, F_GETFL), flags);
    check_equal(read(urandom, buffer, 32), 32);
    check_equal(read(again, buffer + 32, 32), 32);
    check(memcmp(buffer, buffer + 32, 32) != 0, "/dev/urandom repeats itself");
    return finish();
}
