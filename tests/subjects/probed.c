/* Code into which somebody outside of the job puts a breakpoint (uprobe), as the files `executable` and `offset` say. */
#include "subject.h"

__attribute__((noinline, noclone)) static int probed(int value) {
    __asm__ volatile("nop; nop; nop" : "+r"(value));
    return value + 1;
}

/* Where a function lies in the executable. */
static unsigned long offset_of(const void *function) {
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps) broken("open maps: %s", strerror(errno));
    char line[4096];
    unsigned long at = (unsigned long)function, start = 0, end = 0, offset = 0;
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 && start <= at && at < end) break;
    }
    fclose(maps);
    return at - start + offset;
}

static int breakpoint(void) { return *(volatile unsigned char *)(void *)probed == 0xcc; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char text[4096];
    ssize_t length = must(readlink("/proc/self/exe", text, sizeof text));
    spew("executable", text, (size_t)length);
    spew("offset", text, (size_t)snprintf(text, sizeof text, "%lu", offset_of(probed)));
    ready();
    /* With the probe, which is hit, and then without. */
    await_mark("probed");
    check(breakpoint(), "there is no breakpoint");
    check_equal(probed(3), 4);
    mark("hit");
    wait_go();
    check(!breakpoint(), "there is a breakpoint still");
    check_equal(probed(5), sabotage() ? 5 : 6);
    return finish();
}
