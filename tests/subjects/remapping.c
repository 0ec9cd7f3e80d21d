/* Threads change mappings as fast as they can, or hardly ever, one kind of change at a time; each keeps a model of its own pages.
 *
 * A checkpoint may trust what it saw of the mappings a moment ago only if it learns of each of these changes. */
#include "subject.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <linux/prctl.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

enum { PAGE = 4096, THREADS = 3, PAGES = 48, FILE_PAGES = 8, GROWING = 1024 };
enum kind { PROTECT, ADVISE, MAP, MOVE, NAME, LOCK, CONTENT, GUARD, GROW, BREAK, LAYOUT, KINDS };

/* What smaps calls the kinds of advice, and what gives and takes them. */
static const struct {
    char letters[4];
    int set, unset;
} advices[] = {
    {"dc", MADV_DONTFORK, MADV_DOFORK},   {"dd", MADV_DONTDUMP, MADV_DODUMP},    {"wf", MADV_WIPEONFORK, MADV_KEEPONFORK},
    {"rr", MADV_RANDOM, MADV_NORMAL},     {"sr", MADV_SEQUENTIAL, MADV_NORMAL},  {"mg", MADV_MERGEABLE, MADV_UNMERGEABLE},
};
enum { RANDOM = 3, SEQUENTIAL = 4, LOCKED = COUNT(advices) };

struct page {
    char mapped, guarded, value;
    int prot;
    unsigned flags; /* bits by `advices`, and LOCKED */
    int named;      /* 0, or the number in its name */
    int file;       /* -1, or the page of the file */
};

/* What one thread has. */
struct own {
    char *memory;
    struct page pages[PAGES];
    char *top, *low; /* a stack that grows down: its end, and the lowest page that was touched */
    uint64_t random;
    pthread_t thread;
} all[THREADS];

static volatile int kind, pace_us, stop;
static char *heap, *layouts[2];
static volatile int heap_pages, layout;
static struct prctl_mm_map map;
static int file;
static long changes[KINDS];

static unsigned random_below(struct own *own, unsigned limit) {
    own->random ^= own->random << 13, own->random ^= own->random >> 7, own->random ^= own->random << 17;
    return (unsigned)(own->random >> 33) % limit;
}

static const char *name_of(int number) {
    static const char *const names[] = {"", "one", "two"};
    return names[number];
}

static void map_page(struct own *own, int nth) {
    static const struct page fresh = {.mapped = 1, .prot = PROT_READ | PROT_WRITE, .file = -1};
    struct page *page = &own->pages[nth];
    char *at = own->memory + nth * PAGE;
    switch (random_below(own, 3)) {
    case 0:
        must(munmap(at, PAGE));
        *page = (struct page){.file = -1};
        break;
    case 1:
        must(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        *page = fresh;
        break;
    default: {
        int number = (int)random_below(own, FILE_PAGES);
        must(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, number * PAGE));
        *page = fresh, page->file = number, page->value = (char)('a' + number);
    }
    }
}

static void advise(struct own *own, int nth) {
    unsigned which = random_below(own, COUNT(advices)), set = random_below(own, 2), bit = 1u << which;
    struct page *page = &own->pages[nth];
    if (madvise(own->memory + nth * PAGE, PAGE, set ? advices[which].set : advices[which].unset) != 0) return;
    if (which == RANDOM || which == SEQUENTIAL) page->flags &= ~(1u << RANDOM | 1u << SEQUENTIAL);
    page->flags = set ? page->flags | bit : page->flags & ~bit;
}

static void move(struct own *own, int from) {
    int to = (int)random_below(own, PAGES);
    if (to == from) return;
    char *memory = own->memory;
    must(mremap(memory + from * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + to * PAGE));
    own->pages[to] = own->pages[from];
    own->pages[from] = (struct page){.file = -1};
}

static void content(struct own *own, struct page *page, char *at) {
    if (random_below(own, 2)) {
        if (page->guarded || !(page->prot & PROT_WRITE)) return;
        char value = (char)random_below(own, 100);
        *(volatile char *)at = value, page->value = value;
    } else if (madvise(at, PAGE, MADV_DONTNEED) == 0) {
        page->value = page->file < 0 ? 0 : (char)('a' + page->file);
    }
}

static void guard(struct own *own, struct page *page, char *at) {
    int install = (int)random_below(own, 2);
    if (madvise(at, PAGE, install ? MADV_GUARD_INSTALL : MADV_GUARD_REMOVE) != 0) return;
    if (install) page->value = page->file < 0 ? 0 : (char)('a' + page->file);
    page->guarded = (char)install;
}

/* Touches the page below the lowest one, or begins anew. */
static void grow(struct own *own) {
    if (own->top - own->low >= GROWING / 2 * PAGE) {
        must(munmap(own->low, (size_t)(own->top - own->low)));
        own->low = own->top;
    }
    char *next = own->low - PAGE;
    if (own->low == own->top) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN;
        must(mmap(next, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0));
    }
    *(volatile char *)next = 7;
    own->low = next;
}

static void change(struct own *own) {
    int nth = (int)random_below(own, PAGES), now = kind;
    struct page *page = &own->pages[nth];
    char *at = own->memory + nth * PAGE;
    if (now == MAP || (!page->mapped && now <= GUARD)) {
        map_page(own, nth);
    } else if (now == PROTECT) {
        int prot = (int)random_below(own, 4) & (PROT_READ | PROT_WRITE);
        must(mprotect(at, PAGE, prot));
        page->prot = prot;
    } else if (now == ADVISE) {
        advise(own, nth);
    } else if (now == MOVE) {
        move(own, nth);
    } else if (now == NAME) {
        int number = (int)random_below(own, 3);
        const char *name = number ? name_of(number) : NULL;
        if (page->file < 0 && prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE, name) == 0) page->named = number;
    } else if (now == LOCK) {
        unsigned set = random_below(own, 2);
        if ((set ? mlock2(at, PAGE, MLOCK_ONFAULT) : munlock(at, PAGE)) != 0) return;
        page->flags = set ? page->flags | 1u << LOCKED : page->flags & ~(1u << LOCKED);
    } else if (now == CONTENT) {
        content(own, page, at);
    } else if (now == GUARD) {
        guard(own, page, at);
    } else if (now == GROW) {
        grow(own);
    } else if (own == all && now == BREAK) {
        int pages = (int)random_below(own, 64);
        long end = syscall(SYS_brk, heap + pages * PAGE);
        if (end != (long)(heap + pages * PAGE)) broken("brk of %p gives %lx", heap + pages * PAGE, end);
        heap_pages = pages;
    } else if (own == all && now == LAYOUT) {
        int next = !layout;
        map.start_stack = (unsigned long)layouts[next];
        map.brk = (unsigned long)(heap + heap_pages * PAGE);
        /* Which takes the lock of the mappings for reading only (kernel/sys.c, prctl_set_mm_map). */
        must(prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0));
        layout = next;
    }
    __atomic_add_fetch(&changes[now], 1, __ATOMIC_RELAXED);
}

static void *work(void *argument) {
    struct own *own = argument;
    while (!stop) {
        change(own);
        int pause = pace_us;
        struct timespec rest = {0, pause * 1000L};
        if (pause) nanosleep(&rest, NULL);
    }
    return NULL;
}

/* One mapping as smaps shows it. */
struct area {
    unsigned long start, end, offset;
    char permissions[5], name[128], flags[256];
};
static struct area areas[4096];
static int area_count;

static void read_smaps(void) {
    static char line[4096];
    FILE *smaps = fopen("/proc/self/smaps", "re");
    if (!smaps) broken("open smaps: %s", strerror(errno));
    while (fgets(line, sizeof line, smaps)) {
        struct area *next = &areas[area_count];
        int name = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%lx-%lx %4s %lx %*s %*s %n", &next->start, &next->end, next->permissions, &next->offset, &name) == 4) {
            snprintf(next->name, sizeof next->name, "%.120s", line + name);
            if (++area_count == COUNT(areas)) broken("too many mappings");
        } else if (strncmp(line, "VmFlags:", 8) == 0) {
            snprintf(areas[area_count - 1].flags, sizeof areas->flags, "%.250s ", line + 8);
        }
    }
    fclose(smaps);
}

static const struct area *area_at(const char *address) {
    unsigned long at = (unsigned long)address;
    for (int i = 0; i < area_count; i++)
        if (areas[i].start <= at && at < areas[i].end) return &areas[i];
    return NULL;
}

static int has(const struct area *area, const char *letters) {
    for (const char *flag = area->flags; *flag; flag++)
        if (flag[0] == letters[0] && flag[1] == letters[1] && flag[2] == ' ') return 1;
    return 0;
}

static void check_page(int memory, const char *at, const struct page *page) {
    const struct area *area = area_at(at);
    if (!check((area != NULL) == page->mapped, "%p: mapped %d, not %d", at, area != NULL, page->mapped) || !area) return;
    char permissions[5] = {page->prot & PROT_READ ? 'r' : '-', page->prot & PROT_WRITE ? 'w' : '-', '-', 'p', 0};
    check(strcmp(area->permissions, permissions) == 0, "%p: %s, not %s", at, area->permissions, permissions);
    for (unsigned i = 0; i < COUNT(advices); i++)
        check(has(area, advices[i].letters) == (int)(page->flags >> i & 1), "%p: %s differs: %s", at, advices[i].letters, area->flags);
    check(has(area, "lo") == (int)(page->flags >> LOCKED & 1), "%p: lo differs: %s", at, area->flags);
    char name[32] = "";
    if (page->named) snprintf(name, sizeof name, "[anon:%s]", name_of(page->named));
    if (page->file < 0 && strcmp(area->name, "[stack]") != 0) check(strcmp(area->name, name) == 0, "%p: name \"%s\", not \"%s\"", at, area->name, name);
    unsigned long offset = area->offset + ((unsigned long)at - area->start);
    if (page->file >= 0) check(offset == (unsigned long)page->file * PAGE, "%p: at %lx of %s", at, offset, area->name);
    char value = 0;
    int readable = pread(memory, &value, 1, (off_t)(unsigned long)at) == 1;
    check(readable != page->guarded, "%p: readable %d, guarded %d", at, readable, page->guarded);
    if (readable) check(value == page->value, "%p holds %d, not %d", at, value, page->value);
}

static void check_all(void) {
    read_smaps();
    int memory = must(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    for (struct own *own = all; own < all + THREADS; own++) {
        for (int nth = 0; nth < PAGES; nth++) check_page(memory, own->memory + nth * PAGE, &own->pages[nth]);
        const struct area *stack = area_at(own->top - PAGE);
        if (own->low == own->top) continue;
        if (!check(stack && has(stack, "gd"), "no stack that grows at %p", own->low)) continue;
        check(stack->start == (unsigned long)own->low && stack->end == (unsigned long)own->top, "stack %lx-%lx, not %p-%p",
              stack->start, stack->end, own->low, own->top);
        for (char *at = own->low; at < own->top; at += PAGE) check_equal(*at, 7);
    }
    const struct area *last = area_at(heap + (heap_pages - 1) * PAGE);
    check(last && last->end == (unsigned long)(heap + heap_pages * PAGE), "the heap does not end at %p", heap + heap_pages * PAGE);
    char text[1024], *rest;
    slurp("/proc/self/stat", text, sizeof text);
    rest = strrchr(text, ')') + 2;
    for (int field = 3; field < 28; field++) rest = strchr(rest, ' ') + 1;
    check_equal(strtoul(rest, NULL, 10), layouts[layout]);
    close(memory);
}

/* The fields of /proc/self/stat that PR_SET_MM_MAP sets. */
static void read_layout(void) {
    char text[1024], *rest;
    unsigned long fields[64] = {0};
    slurp("/proc/self/stat", text, sizeof text);
    rest = strrchr(text, ')') + 2;
    for (int field = 3; field < 52 && rest; field++) {
        fields[field] = strtoul(rest, NULL, 10);
        rest = strchr(rest, ' ');
        rest = rest ? rest + 1 : NULL;
    }
    map = (struct prctl_mm_map){
        .start_code = fields[26], .end_code = fields[27], .start_stack = fields[28], .start_data = fields[45],
        .end_data = fields[46],   .start_brk = fields[47], .arg_start = fields[48],
        .arg_end = fields[49],    .env_start = fields[50], .env_end = fields[51],      .exe_fd = (unsigned)-1,
    };
}

int main(int argc, char **argv) {
    subject_begin(argc, argv);
    file = must(open("file", O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    for (int i = 0; i < FILE_PAGES; i++) {
        char bytes[PAGE];
        memset(bytes, 'a' + i, sizeof bytes);
        must(write(file, bytes, sizeof bytes));
    }
    /* What malloc has from now on lies below. */
    void *volatile first = malloc(1);
    free(first);
    heap = (char *)(((unsigned long)must(sbrk(0)) + 2 * PAGE - 1) / PAGE * PAGE);
    heap_pages = 1;
    must(syscall(SYS_brk, heap + PAGE) == (long)(heap + PAGE) ? 0 : -1);
    read_layout();
    for (int i = 0; i < THREADS; i++) {
        struct own *own = &all[i];
        char *place = must(mmap(NULL, (PAGES + GROWING + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        own->memory = place + PAGE;
        own->top = own->low = own->memory + (PAGES + GROWING) * PAGE;
        /* Where the stack grows into. */
        must(munmap(own->top - GROWING / 4 * 3 * PAGE, GROWING / 4 * 3 * PAGE));
        own->random = (uint64_t)i * 7919 + 12345;
        for (int nth = 0; nth < PAGES; nth++) map_page(own, nth);
    }
    layouts[0] = (char *)map.start_stack, layouts[1] = all[0].memory;
    for (int i = 0; i < THREADS; i++) must(-pthread_create(&all[i].thread, NULL, work, &all[i]));
    uint64_t turns = (uint64_t)getpid();
    ready();
    while (!marked("go")) {
        turns = turns * 6364136223846793005u + 1442695040888963407u;
        kind = (int)((turns >> 40) % KINDS);
        pace_us = (turns >> 33) % 2 ? 1000 : 0;
        sleep_ms(30);
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++) pthread_join(all[i].thread, NULL);
    if (sabotage()) must(munmap(all[0].memory, PAGES * PAGE));
    check_all();
    return finish();
}
