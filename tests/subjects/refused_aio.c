/* A context of io_submit(2), whose device may be writing to memory while everybody stands still. */
#include "subject.h"
#include <linux/aio_abi.h>

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, 8, &context) != 0) skip("io_setup: %s", strerror(errno));
    ready();
    wait_go();
    if (sabotage()) must(syscall(SYS_io_destroy, context));
    check(syscall(SYS_io_getevents, context, 0, 0, NULL, NULL) == 0, "the context is gone");
    return finish();
}
