/* Pipes in packet mode, of which a read gives one packet at a time, and large ones. */
#include "subject.h"

#define LARGE (1 << 20)

static void expect(int fd, const char *packet) {
    char data[4096];
    ssize_t n = read(fd, data, sizeof data);
    check(n == (ssize_t)strlen(packet) && memcmp(data, packet, (size_t)n) == 0, "a packet has %zd bytes, expected \"%s\"", n,
          packet);
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int several[2], one[2], switched[2], large[2], full[2];
    must(pipe2(several, O_DIRECT));
    must(write(several[1], "one", 3)), must(write(several[1], "three", 5)), must(write(several[1], "!", 1));
    must(pipe2(one, O_DIRECT | O_CLOEXEC));
    must(write(one[1], "lone", 4));
    must(pipe(switched));
    must(fcntl(switched[1], F_SETFL, O_DIRECT));
    must(write(switched[1], "packet", 6)), must(write(switched[1], "another", 7));
    must(fcntl(switched[1], F_SETFL, 0));
    must(pipe(large));
    must(fcntl(large[1], F_SETPIPE_SZ, LARGE));
    char *data = malloc(LARGE), *back = malloc(LARGE);
    fill(data, LARGE, 5);
    check_equal(write(large[1], data, LARGE), LARGE);
    /* As many packets as it has room for. */
    must(pipe2(full, O_DIRECT | O_NONBLOCK));
    int count = 0;
    while (write(full[1], "x", 1) == 1) count++;
    ready();
    wait_go();

    if (sabotage()) must(read(several[0], back, 4096)), must(write(several[1], "?", 1));
    check_equal(fcntl(several[1], F_GETFL) & O_DIRECT, O_DIRECT);
    expect(several[0], "one"), expect(several[0], "three"), expect(several[0], "!");
    must(write(several[1], "later", 5)), must(write(several[1], "last", 4));
    expect(several[0], "later"), expect(several[0], "last");
    must(write(one[1], "next", 4));
    expect(one[0], "lone"), expect(one[0], "next");
    check_equal(fcntl(switched[1], F_GETFL) & O_DIRECT, 0);
    expect(switched[0], "packet"), expect(switched[0], "another");
    check_equal(fcntl(large[0], F_GETPIPE_SZ), LARGE);
    size_t n = 0;
    while (n < LARGE) {
        ssize_t got = read(large[0], back + n, LARGE - n);
        if (!check(got > 0, "read: %s", strerror(errno))) break;
        n += (size_t)got;
    }
    check_filled(back, LARGE, 5);
    for (int i = 0; i < count; i++) expect(full[0], "x");
    check(read(full[0], back, 1) == -1 && errno == EAGAIN, "there were %d packets and there are more", count);
    return finish();
}
