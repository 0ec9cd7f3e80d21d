/* A userfaultfd of the job's own. The file `descriptor` tells its number. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    if (fd < 0) skip("userfaultfd: %s", strerror(errno));
    char text[16];
    spew("descriptor", text, (size_t)snprintf(text, sizeof text, "%d", fd));
    ready();
    wait_go();
    if (sabotage()) must(close(fd));
    check_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    return finish();
}
