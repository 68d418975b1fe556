/*
 * Maps memory itself in every way that there is, and has the C library's allocator map some, which is not the program's own.
 * What is in use are bytes that are mapped; a mapping is there until its last page has gone.
 */
#include "ledger.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { PAGE = 4096, ROUNDS = 50, THREADS = 4, STORM = 2000 };

static void *map_at(void *address, size_t size, int flags)
{
    void *mapped =
        mmap(address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return mapped == MAP_FAILED ? NULL : mapped;
}

/* A part has gone, and the rest is there. */
static void gave_part(struct site *site, size_t size)
{
    atomic_fetch_add_explicit(&site->freed_bytes, (long)size, memory_order_relaxed);
}

static void unmap(struct block block)
{
    gave(block);
    if (munmap(block.address, block.size))
        fatal("munmap");
}

SITE(whole_mmap);
static KEEP struct block whole_mmap(size_t size)
{
    return took(&whole_mmap_site, map_at(NULL, size, 0), size);
}

SITE(parts_mmap);
static KEEP struct block parts_mmap(size_t size)
{
    return took(&parts_mmap_site, map_at(NULL, size, 0), size);
}

SITE(covered_mmap);
static KEEP struct block covered_mmap(size_t size)
{
    return took(&covered_mmap_site, map_at(NULL, size, 0), size);
}

SITE(covering_mmap);
static KEEP struct block covering_mmap(char *address, size_t size)
{
    return took(&covering_mmap_site, map_at(address, size, MAP_FIXED), size);
}

SITE(before_mremap);
static KEEP struct block before_mremap(size_t size)
{
    return took(&before_mremap_site, map_at(NULL, size, 0), size);
}

SITE(after_mremap);
static KEEP struct block after_mremap(struct block old, size_t size)
{
    void *moved = mremap(old.address, old.size, size, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED)
        fatal("mremap");
    gave(old);
    return took(&after_mremap_site, moved, size);
}

SITE(with_sbrk);
static KEEP struct block with_sbrk(size_t size)
{
    void *before = sbrk((intptr_t)size);
    return took(&with_sbrk_site, before == (void *)-1 ? NULL : before, size);
}

SITE(storm_mmap);
static KEEP struct block storm_mmap(size_t size)
{
    return took(&storm_mmap_site, map_at(NULL, size, 0), size);
}

/* The allocator's own mapping must not be counted beside the block in it. */
SITE(large_malloc);
static KEEP struct block large_malloc(size_t size)
{
    return took(&large_malloc_site, malloc(size), size);
}

static void run_parts(void)
{
    struct block block = parts_mmap(10 * PAGE);
    char *start = block.address;
    /* The first, one from the midst, the last two, and twice what is gone already. */
    if (munmap(start, PAGE) || munmap(start + 4 * PAGE, PAGE) || munmap(start + 8 * PAGE, 2 * PAGE)
        || munmap(start, PAGE) || munmap(start + 4 * PAGE, PAGE))
        fatal("munmap");
    gave_part(block.site, 4 * PAGE);
    /* All that is left of another, in two pieces of which the second reaches beyond. */
    block = parts_mmap(4 * PAGE);
    start = block.address;
    if (munmap(start, 3 * PAGE) || munmap(start + 3 * PAGE, 1))
        fatal("munmap");
    gave(block);
}

static void run_covered(void)
{
    struct block below = covered_mmap(6 * PAGE);
    char *start = below.address;
    struct block above = covering_mmap(start + PAGE, 2 * PAGE);
    gave_part(below.site, 2 * PAGE);
    /* A file in the place of half of it. */
    int file = open("/proc/self/exe", O_RDONLY);
    if (mmap(start + 2 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)
        fatal("cannot map the program's file");
    close(file);
    gave_part(above.site, PAGE);
}

static void run_moved(void)
{
    struct block block = before_mremap(3 * PAGE);
    block = after_mremap(block, 300 * PAGE);
    block = after_mremap(block, 2 * PAGE);
    /* What fails changes nothing. */
    if (mremap(block.address, block.size, 5 * PAGE, 1 << 20) != MAP_FAILED)
        fatal("mremap should fail");
    if (mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
        fatal("mmap should fail");
    unmap(after_mremap(block, PAGE));
    after_mremap(before_mremap(PAGE), 7 * PAGE);
}

static void run_break(void)
{
    struct block block = with_sbrk(8 * PAGE);
    if (sbrk(-3 * PAGE) == (void *)-1)
        fatal("sbrk");
    gave_part(block.site, 3 * PAGE);
}

static void *storm(void *unused)
{
    for (int index = 0; index < STORM; index++) {
        struct block block = storm_mmap((size_t)(index % 7 + 1) * PAGE);
        if (index % 100)
            unmap(block);
    }
    return unused;
}

static void run(const char *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS; round++) {
        struct block block = whole_mmap((size_t)(round + 1) * PAGE);
        if (round % 2)
            unmap(block);
        struct block large = large_malloc(1 << 20);
        if (round % 2)
            give(large);
        run_parts();
        run_covered();
        run_moved();
        run_break();
    }
}

static void run_storm(const char *argument)
{
    (void)argument;
    pthread_t threads[THREADS];
    for (int index = 0; index < THREADS; index++)
        if (pthread_create(&threads[index], NULL, storm, NULL))
            fatal("no thread");
    for (int index = 0; index < THREADS; index++)
        pthread_join(threads[index], NULL);
}

static struct block earlier;

static KEEP void map_early(const char *argument)
{
    (void)argument;
    earlier.size = 5 * PAGE;
    earlier.address = map_at(NULL, earlier.size, 0);
}

static void move_early(const char *argument)
{
    (void)argument;
    void *moved = mremap(earlier.address, earlier.size, 50 * PAGE, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED || munmap(moved, 50 * PAGE))
        fatal("mremap");
}

static void replace(const char *argument)
{
    (void)argument;
    execl("/proc/self/exe", "second", (char *)NULL);
    fatal("cannot replace the program");
}

int main(void)
{
    serve((const struct command[]){
        { "run", run },
        { "storm", run_storm },
        { "map-early", map_early },
        { "move-early", move_early },
        { "exec", replace },
        { 0 },
    });
    return 0;
}
