/*
 * A process that is not as others are, and allocates nevertheless: `run` does, and checks what it gets.
 *
 * `remap` puts a copy in the place of the C library's code, as programs do that want it on large pages. `fill` leaves no room within 2 GiB
 * of the C library, `fill low` none in the first 2 GiB. `forge BYTES` maps a file as a gate has it, with so many bytes of data, beside a
 * mapping that is not the gate's; it prints where the code, the data and the other mapping are, and `forged` whether the last is what it
 * was.
 */
#include "ledger.h"

#include <stdbool.h>
#include <sys/mman.h>

enum { PAGE = 4096, CODE_BYTES = 4 * PAGE, BLOCKS = 1000 };

SITE(by_malloc);
static KEEP struct block by_malloc(size_t size)
{
    return took(&by_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (int number = 0; number < BLOCKS; number++) {
        size_t size = 24 + (size_t)number;
        struct block block = by_malloc(size);
        memset(block.address, number, size);
        for (size_t index = 0; index < size; index++)
            if (((unsigned char *)block.address)[index] != (unsigned char)number)
                fatal("a block has changed");
        give(block);
    }
}

struct range {
    uintptr_t start, end;
    bool is_code;
};

/* What is mapped, and which of it is the C library's. */
static struct range ranges[4096], library;
static size_t count;

static void look(void)
{
    static char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    library = (struct range){ 0 };
    for (count = 0; maps && fgets(line, sizeof line, maps) && count < sizeof ranges / sizeof *ranges; count++) {
        struct range *range = &ranges[count];
        char access[8];
        if (sscanf(line, "%lx-%lx %7s", &range->start, &range->end, access) != 3)
            fatal("no mapping");
        range->is_code = access[2] == 'x';
        if (strstr(line, "/libc.so") && range->is_code)
            library = *range;
    }
    if (!maps || fclose(maps))
        fatal("no mappings");
}

static void remap(const char *argument)
{
    (void)argument;
    look();
    size_t bytes = library.end - library.start;
    char *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        fatal("no memory");
    memcpy(copy, (void *)library.start, bytes);
    if (mprotect(copy, bytes, PROT_READ | PROT_EXEC) ||
        mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)library.start) != (void *)library.start)
        fatal("it cannot be moved");
}

static void fill_between(uintptr_t from, uintptr_t to)
{
    for (size_t index = 0; index <= count; index++) {
        uintptr_t start = index ? ranges[index - 1].end : 0, end = index < count ? ranges[index].start : ~0ul;
        start = start < from ? from : start;
        end = end > to ? to : end;
        if (start < end && mmap((void *)start, end - start, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED &&
            errno != ENOMEM && errno != EPERM)
            fatal("it cannot be filled");
    }
}

static void fill(const char *argument)
{
    const uintptr_t lowest = 1ul << 16, reach = 1ul << 31;
    look();
    if (!strcmp(argument, "low"))
        fill_between(lowest, reach);
    else
        fill_between(library.start - reach, library.end + reach);
}

static unsigned char *other;
static size_t other_bytes;

static void forge(const char *argument)
{
    other_bytes = strtoul(argument, NULL, 10);
    int file = memfd_create("heaptap-gate", 0);
    if (file < 0 || ftruncate(file, CODE_BYTES + (off_t)other_bytes))
        fatal("no file");
    void *code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    void *data = mmap(NULL, other_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, CODE_BYTES);
    other = mmap(NULL, other_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED || data == MAP_FAILED || other == MAP_FAILED || close(file))
        fatal("no memory");
    memset(other, 0, other_bytes);
    other[other_bytes - 1] = 1;
    say("%lu %lu %lu", (unsigned long)code, (unsigned long)data, (unsigned long)other);
}

static void forged(const char *argument)
{
    (void)argument;
    for (size_t index = 0; index < other_bytes; index++)
        if (other[index] != (index == other_bytes - 1))
            fatal("what is not the gate's has changed");
}

int main(void)
{
    static const struct command commands[] = {
        { "run", run }, { "remap", remap }, { "fill", fill }, { "forge", forge }, { "forged", forged }, { 0 },
    };
    serve(commands);
    return 0;
}
