/* A process with nothing in it. */
#include "job.h"

static volatile uint64_t kept = 0x0123456789abcdef;

static const char *check(void)
{
    return kept == 0x0123456789abcdef ? NULL : "a variable has changed";
}

int main(int argc, char **argv)
{
    enter(argc, argv);
    return live(check);
}
