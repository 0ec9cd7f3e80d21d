/* A performance counter. The file `descriptor` tells its number. */
#include "subject.h"
#include <linux/perf_event.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_PAGE_FAULTS};
    int fd = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    if (fd < 0) skip("perf_event_open: %s", strerror(errno));
    char text[16];
    spew("descriptor", text, (size_t)snprintf(text, sizeof text, "%d", fd));
    ready();
    wait_go();
    if (sabotage()) must(close(fd));
    uint64_t count;
    check_equal(read(fd, &count, sizeof count), sizeof count);
    return finish();
}
