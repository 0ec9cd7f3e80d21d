/* Tens of thousands of mappings, alternating in protection, each with its content. */
#include "subject.h"
#include <sys/mman.h>

enum { PAGE = 4096, MAPPINGS = 20000 };

static int count_of(const char *path) {
    FILE *file = fopen(path, "re");
    int count = 0;
    for (int c; (c = fgetc(file)) != EOF;) count += c == '\n';
    fclose(file);
    return count;
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    unsigned char *memory =
        must(mmap(NULL, (size_t)MAPPINGS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    static const int protections[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
    for (int i = 0; i < MAPPINGS; i++) {
        memset(memory + (size_t)i * PAGE, i % 251 + 1, 64);
        must(mprotect(memory + (size_t)i * PAGE, PAGE, protections[i % 3]));
    }
    int before = count_of("/proc/self/maps");
    must(before >= MAPPINGS ? 0 : -1);
    ready();
    wait_go();

    if (sabotage()) must(mprotect(memory, 3 * PAGE, PROT_READ | PROT_WRITE));
    int after = count_of("/proc/self/maps");
    check(abs(after - before) <= 2, "%d mappings became %d", before, after);
    for (int i = 0; i < MAPPINGS; i++) {
        unsigned char *page = memory + (size_t)i * PAGE;
        if (!check(page[0] == i % 251 + 1 && page[63] == i % 251 + 1 && page[64] == 0, "content of mapping %d differs", i))
            break;
    }
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512], permissions[5];
    unsigned long start, end;
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) != 3 || start < (unsigned long)memory ||
            end > (unsigned long)memory + (size_t)MAPPINGS * PAGE)
            continue;
        static const char *const expected[] = {"r--p", "rw-p", "r-xp"};
        size_t i = (start - (unsigned long)memory) / PAGE;
        if (!check(strcmp(permissions, expected[i % 3]) == 0, "mapping %zu is %s", i, permissions)) break;
    }
    fclose(maps);
    return finish();
}
