/* Stacks: the caller's frames are as they were, and growing goes on after the restore, of the main stack and of a
 * MAP_GROWSDOWN mapping. */
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096 };

__attribute__((noinline)) static uint64_t descend(int depth, uint64_t seed, int wait_at) {
    volatile unsigned char frame[3000];
    fill((void *)frame, sizeof frame, seed);
    if (depth == wait_at) {
        ready();
        wait_go();
        if (sabotage()) frame[7] ^= 1;
    }
    uint64_t below = depth > 0 ? descend(depth - 1, seed + 1, wait_at) : 0;
    check_filled((void *)frame, sizeof frame, seed);
    return below * 31 + frame[seed % sizeof frame];
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    /* Room below, so that the growing mapping has somewhere to grow. */
    char *room = must(mmap(NULL, 1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    must(munmap(room, 1024 * PAGE));
    char *grows = must(mmap(room + 1020 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
    fill(grows, 4 * PAGE, 77);
    for (int i = 1; i <= 8; i++) grows[-i * PAGE] = (char)i;

    /* 1000 frames before the checkpoint, 1000 more (3 MiB) after it. */
    uint64_t result = descend(2000, 1, 1000);
    check(result != 0, "no result");

    check_filled(grows, 4 * PAGE, 77);
    for (int i = 1; i <= 8; i++) check_equal(grows[-i * PAGE], i);
    for (int i = 9; i <= 300; i++) grows[-i * PAGE] = (char)i;
    for (int i = 9; i <= 300; i++) check_equal(grows[-i * PAGE], (char)i);
    return finish();
}
