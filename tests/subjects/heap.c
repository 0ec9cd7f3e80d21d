/* The heap: grown by brk, used by malloc, growing and shrinking on after the restore. */
#include "subject.h"

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    char *blocks[200];
    for (size_t i = 0; i < COUNT(blocks); i++) {
        blocks[i] = must(malloc(1000 + 731 * i));
        fill(blocks[i], 1000 + 731 * i, i);
    }
    for (size_t i = 0; i < COUNT(blocks); i += 3) free(blocks[i]), blocks[i] = NULL;
    char *start = must(sbrk(3 << 20));
    fill(start, 3 << 20, 1000);
    char *end = sbrk(0);
    ready();
    wait_go();

    if (sabotage()) start[12345] ^= 1;
    check(sbrk(0) == end, "the break moved from %p to %p", (void *)end, sbrk(0));
    check_filled(start, 3 << 20, 1000);
    char *more = sbrk(1 << 20);
    check(more == end, "the heap grows on from %p, not %p", (void *)more, (void *)end);
    if (more != (void *)-1)
        for (int i = 0; i < 1 << 20; i++)
            if (more[i]) {
                check(0, "new heap is not zero at %d", i);
                break;
            }
    fill(more, 1 << 20, 1001);
    check_filled(more, 1 << 20, 1001);
    check(sbrk(-(1 << 20)) != (void *)-1 && sbrk(0) == end, "the heap does not shrink");
    for (size_t i = 0; i < COUNT(blocks); i++)
        if (blocks[i]) {
            check_filled(blocks[i], 1000 + 731 * i, i);
            free(blocks[i]);
        }
    for (size_t i = 0; i < 1000; i++) free(malloc(i * 37));
    return finish();
}
