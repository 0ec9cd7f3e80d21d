/* Carries out a script of memory operations up to a gate, and tells what every page holds.
 *
 * It knows nothing of what its memory should hold: script, gate and model are kept by `scenarios/memory.rs`, out of reach
 * of any checkpoint. Files in the work directory, opened by path each time they are needed:
 *   script    one record of 64 bytes a step
 *   gate      how many steps to take, and the number of the latest question; its lowest bit asks for a dump
 *   progress  of each process: how many steps it has taken
 *   answer    of each process: the question it answers, standing still at the gate, and the steps it has taken
 *   dump      of each process: what each page holds
 *   base      the file that is mapped privately
 * Every process walks the whole script and does what is meant for it. malloc is never used: the heap is under test. */
#include "subject.h"

#include <setjmp.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define ARENA_BASE 0x10000000000UL
#define STACK_GAP (256 * 1024UL) /* for our own frames, more than the kernel maps at first */
#define CHECK 0x5a5a5a5a5a5a5a5aUL

/* The same in src/memory/op.rs. */
enum { WRITE, POKE, READ, CHURN, LOAD, MAP, UNMAP, REMAP, PROTECT, ADVISE, BREAK, FORK, EXIT, EXEC };
enum { ARENA, HUGE_ZONE, HEAP, STACK, DATA, ZONES };
enum { ANONYMOUS, ANONYMOUS_THP, FILE_PRIVATE, SHARED, HUGETLB };
static const size_t ZONE_PAGES[ZONES] = {4096, 1024, 256, 256, 64};

struct record {
    uint32_t kind, actor;
    uint64_t zone, page, count, a, b, c, step;
};

/* What is found at a page; the same in src/memory/page.rs. */
struct found {
    uint64_t state; /* protection (1 read, 2 write, 4 execute), 8 mapped, 16 shared, 32 raises SIGSEGV, 64 SIGBUS */
    uint64_t hash, first;
};

static char data[64 * 4096] __attribute__((section(".data"), aligned(4096)));
static char *zones[ZONES];
static uint64_t step, answered, process;
static struct found found[4096];
static char maps[1 << 20];
static sigjmp_buf escape;

static const char *path_of(const char *name, uint64_t number) {
    static char path[64];
    snprintf(path, sizeof path, "%s.%u", name, (unsigned)number);
    return path;
}

/* Three words, the last of which shows whether the others belong together. */
static void put(const char *name, uint64_t a, uint64_t b) {
    uint64_t words[3] = {a, b, a ^ b ^ CHECK};
    int fd = must(open(path_of(name, process), O_WRONLY | O_CLOEXEC));
    if (pwrite(fd, words, sizeof words, 0) != sizeof words) broken("write %s: %s", name, strerror(errno));
    close(fd);
}

static void read_gate(uint64_t *limit, uint64_t *question) {
    uint64_t words[3];
    for (;;) {
        int fd = must(open("gate", O_RDONLY | O_CLOEXEC));
        ssize_t n = pread(fd, words, sizeof words, 0);
        close(fd);
        if (n == sizeof words && words[2] == (words[0] ^ words[1] ^ CHECK)) break;
    }
    *limit = words[0];
    *question = words[1];
}

/* Word `i` of a page that was written with `stamp`, which is its first word. */
static uint64_t word_of(uint64_t stamp, uint64_t i) {
    uint64_t x = stamp + i * 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    return i == 0 ? stamp : x * 0xbf58476d1ce4e5b9u;
}

static uint64_t hash_of(const volatile uint64_t *page) {
    uint64_t hash = 0;
    for (uint64_t i = 0; i < PAGE / 8; i++) {
        hash = (hash ^ page[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}

static void on_fault(int signal) { siglongjmp(escape, signal); }

/* Copies a page whatever its protection is; 0 when that is refused. */
static int copy_forced(uint64_t copy[PAGE / 8], const char *page) {
    int fd = must(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    ssize_t n = pread(fd, copy, PAGE, (off_t)page);
    close(fd);
    return n == (ssize_t)PAGE;
}

/* Hash and first word of a page, by reading it as any program would where that is allowed. */
static void look(struct found *it, const char *page) {
    static uint64_t copy[PAGE / 8];
    int signal = sigsetjmp(escape, 1);
    if (signal != 0) {
        it->state |= signal == SIGSEGV ? 32 : 64;
    } else if (it->state & 1) {
        it->hash = hash_of((const volatile uint64_t *)page);
        it->first = *(const volatile uint64_t *)page;
    } else if (copy_forced(copy, page)) {
        it->hash = hash_of(copy);
        it->first = copy[0];
    } else {
        it->state |= 32;
    }
}

static void read_maps(void) {
    int fd = must(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
    size_t length = 0;
    ssize_t n;
    while ((n = read(fd, maps + length, sizeof maps - 1 - length)) > 0) length += (size_t)n;
    if (length == sizeof maps - 1) broken("too many mappings");
    maps[length] = 0;
    close(fd);
}

/* Marks the pages of a zone that are mapped. */
static void mark_mapped(int zone) {
    uintptr_t from = (uintptr_t)zones[zone], to = from + ZONE_PAGES[zone] * PAGE;
    memset(found, 0, sizeof found);
    for (char *line = maps; *line; line = strchr(line, '\n') + 1) {
        char *end;
        uintptr_t start = strtoul(line, &end, 16), stop = strtoul(end + 1, &end, 16);
        uint64_t state = 8 | (end[1] == 'r' ? 1 : 0) | (end[2] == 'w' ? 2 : 0) | (end[3] == 'x' ? 4 : 0) |
                         (end[4] == 's' ? 16 : 0);
        if (start < from) start = from;
        if (stop > to) stop = to;
        for (; start < stop; start += PAGE) found[(start - from) / PAGE].state = state;
    }
}

static void dump(void) {
    int fd = must(open(path_of("dump", process), O_WRONLY | O_TRUNC | O_CLOEXEC));
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    read_maps();
    for (int zone = 0; zone < ZONES; zone++) {
        mark_mapped(zone);
        for (size_t i = 0; i < ZONE_PAGES[zone]; i++)
            if (found[i].state & 8) look(&found[i], zones[zone] + i * PAGE);
        ssize_t size = (ssize_t)(ZONE_PAGES[zone] * sizeof found[0]);
        if (write(fd, found, (size_t)size) != size) broken("write dump: %s", strerror(errno));
    }
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    close(fd);
}

static void wait_at_gate(void) {
    for (;;) {
        uint64_t limit, question;
        read_gate(&limit, &question);
        if (step < limit) return;
        if (question != answered) {
            if (question & 1) dump();
            answered = question;
            put("answer", question, step);
        }
        sleep_ms(1);
    }
}

static void write_page(char *page, uint64_t stamp) {
    volatile uint64_t *words = (volatile uint64_t *)page;
    for (uint64_t i = 0; i < PAGE / 8; i++) words[i] = word_of(stamp, i);
}

/* Fills memory by read(2) from the file, past the page cache if asked and possible. */
static void load(char *at, uint64_t count, uint64_t file_page, int direct) {
    int fd = direct ? open("base", O_RDONLY | O_CLOEXEC | O_DIRECT) : -1;
    if (fd < 0) fd = must(open("base", O_RDONLY | O_CLOEXEC));
    size_t length = count * PAGE, done = 0;
    while (done < length) {
        ssize_t n = must(pread(fd, at + done, length - done, (off_t)(file_page * PAGE + done)));
        if (n == 0) broken("base is too short");
        done += (size_t)n;
    }
    close(fd);
}

static void map(char *at, const struct record *op) {
    int flags = MAP_FIXED, fd = -1;
    off_t offset = 0;
    if (op->a == FILE_PRIVATE) {
        fd = must(open("base", O_RDONLY | O_CLOEXEC));
        flags |= MAP_PRIVATE;
        offset = (off_t)(op->c * PAGE);
    } else {
        flags |= MAP_ANONYMOUS | (op->a == SHARED ? MAP_SHARED : MAP_PRIVATE) | (op->a == HUGETLB ? MAP_HUGETLB : 0);
    }
    must((intptr_t)mmap(at, op->count * PAGE, (int)op->b, flags, fd, offset));
    if (fd >= 0) close(fd);
    if (op->a == ANONYMOUS_THP) madvise(at, op->count * PAGE, MADV_HUGEPAGE);
}

static void carry_out(const struct record *op, char **argv) {
    char *at = zones[op->zone] + op->page * PAGE;
    size_t length = op->count * PAGE;
    uint64_t stamp = ((op->step + 1) << 32) | (op->zone << 24) | op->page;
    switch (op->kind) {
    case CHURN:
        for (uint64_t round = 0; round < op->a; round++)
            for (uint64_t i = 0; i < op->count; i++) *(volatile uint64_t *)(at + i * PAGE + 8) = ~round;
        __attribute__((fallthrough));
    case WRITE:
        for (uint64_t i = 0; i < op->count; i++) write_page(at + i * PAGE, stamp + i);
        break;
    case POKE:
        for (uint64_t i = 0; i < op->count; i++) ((volatile uint64_t *)(at + i * PAGE))[op->a] = stamp + i;
        break;
    case READ:
        for (uint64_t i = 0; i < op->count; i++) (void)*(volatile uint64_t *)(at + i * PAGE);
        break;
    case LOAD: load(at, op->count, op->a, (int)op->b); break;
    case MAP: map(at, op); break;
    case UNMAP: must(munmap(at, length)); break;
    case REMAP: must((intptr_t)mremap(at, length, op->b * PAGE, (int)op->c, zones[op->zone] + op->a * PAGE)); break;
    case PROTECT: must(mprotect(at, length, (int)op->a)); break;
    case ADVISE:
        if (madvise(at, length, (int)op->a) != 0 && !op->b) broken("madvise %d: %s", (int)op->a, strerror(errno));
        break;
    case BREAK: must(brk(zones[HEAP] + op->a * PAGE)); break;
    case FORK:
        if (must(fork()) == 0) {
            process = op->a;
            answered = 0;
        }
        break;
    case EXIT: _exit(0);
    case EXEC: {
        char number[2][24];
        snprintf(number[0], sizeof number[0], "%lu", process);
        snprintf(number[1], sizeof number[1], "%lu", op->step + 1);
        char *arguments[] = {argv[0], argv[1], number[0], number[1], NULL};
        must(execv(argv[0], arguments));
        break;
    }
    default: broken("operation %u", op->kind);
    }
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    if (argc > 3) {
        process = strtoul(argv[2], NULL, 10);
        step = strtoul(argv[3], NULL, 10);
    }
    signal(SIGCHLD, SIG_IGN);
    zones[ARENA] = (char *)ARENA_BASE;
    zones[HUGE_ZONE] = zones[ARENA] + ZONE_PAGES[ARENA] * PAGE;
    zones[HEAP] = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) / PAGE * PAGE);
    zones[STACK] = (char *)(((uintptr_t)__builtin_frame_address(0) - STACK_GAP) / PAGE * PAGE) - ZONE_PAGES[STACK] * PAGE;
    zones[DATA] = data;
    must(brk(zones[HEAP]));
    if (argc <= 3) ready();
    for (;;) {
        put("progress", step, 0);
        wait_at_gate();
        struct record op;
        int fd = must(open("script", O_RDONLY | O_CLOEXEC));
        if (pread(fd, &op, sizeof op, (off_t)(step * sizeof op)) != sizeof op) broken("script: step %lu", step);
        close(fd);
        if (op.actor == process) carry_out(&op, argv);
        step++;
    }
}
