/* An io_uring. The file `descriptor` tells its number. */
#include "subject.h"
#include <linux/io_uring.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct io_uring_params parameters = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 8, &parameters);
    if (ring < 0) skip("io_uring_setup: %s", strerror(errno));
    char text[16];
    spew("descriptor", text, (size_t)snprintf(text, sizeof text, "%d", ring));
    ready();
    wait_go();
    if (sabotage()) must(close(ring));
    check(fcntl(ring, F_GETFD) >= 0, "the ring is gone");
    return finish();
}
