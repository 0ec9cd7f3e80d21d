/* 3 TiB of reserved address space with a few islands of memory in it, as managed runtimes have it. */
#include "subject.h"
#include <sys/mman.h>

static const size_t RESERVED = 3UL << 40;
enum { ISLAND = 1 << 16 };

static size_t island(int i) { return (size_t)i * (RESERVED / 8) + 12345UL * 4096; }

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    unsigned char *memory =
        mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) skip("3 TiB cannot be reserved: %s", strerror(errno));
    for (int i = 0; i < 8; i++) {
        must(mprotect(memory + island(i), ISLAND, PROT_READ | PROT_WRITE));
        fill(memory + island(i), ISLAND, (uint64_t)i);
    }
    char size[64], size_now[64];
    field_of("/proc/self/status", "VmSize", size, sizeof size);
    ready();
    wait_go();

    if (sabotage()) must(munmap(memory + (1UL << 40), 4UL << 20));
    field_of("/proc/self/status", "VmSize", size_now, sizeof size_now);
    check(llabs(atoll(size) - atoll(size_now)) < 1024, "the address space was %s and is %s", size, size_now);
    for (int i = 0; i < 8; i++) check_filled(memory + island(i), ISLAND, (uint64_t)i);
    char protection[5];
    protection_of(memory + (1UL << 40) + 4096, protection);
    check(strcmp(protection, "---p") == 0, "between the islands it is %s", protection);
    check(mprotect(memory + (2UL << 40) + (1UL << 30), 4096, PROT_READ | PROT_WRITE) == 0, "no new island: %s", strerror(errno));
    memory[(2UL << 40) + (1UL << 30)] = 1;
    return finish();
}
