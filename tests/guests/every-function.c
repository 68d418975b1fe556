/*
 * Calls every allocation function of glibc, in each of its outcomes, from a site of its own.
 *
 * `run` may be given any number of times; two of three blocks stay, so that in-use is not the same as
 * allocated.
 */
#include "ledger.h"

#include <dlfcn.h>
#include <malloc.h>

enum { ROUNDS = 60, RUNS = 8, KINDS = 16 };

/* More than any allocator has, and out of the compiler's sight, which would warn. */
static volatile size_t huge = PTRDIFF_MAX - 4096;

/* The compatibility symbol that programs linked before glibc 2.26 use; no header has it. */
static void (*old_cfree)(void *);

static struct block kept[RUNS * ROUNDS * KINDS];
static size_t keeping;

static void keep(struct block block)
{
    if (keeping == sizeof kept / sizeof *kept)
        fatal("no room for more blocks");
    kept[keeping++] = block;
}

static void keep_two_of_three(int round, struct block block)
{
    if (!block.address)
        fatal("out of memory");
    if (round % 3 == 0)
        give(block);
    else
        keep(block);
}

SITE(call_malloc);
static KEEP struct block call_malloc(size_t size)
{
    return took(&call_malloc_site, malloc(size), size);
}

SITE(call_malloc_zero);
static KEEP struct block call_malloc_zero(void)
{
    return took(&call_malloc_zero_site, malloc(0), 0);
}

SITE(call_malloc_huge);
static KEEP struct block call_malloc_huge(void)
{
    return took(&call_malloc_huge_site, malloc(huge), huge);
}

SITE(call_calloc);
static KEEP struct block call_calloc(size_t count, size_t size)
{
    return took(&call_calloc_site, calloc(count, size), count * size);
}

SITE(call_calloc_overflow);
static KEEP struct block call_calloc_overflow(void)
{
    return took(&call_calloc_overflow_site, calloc(huge, 16), 0);
}

SITE(call_posix_memalign);
static KEEP struct block call_posix_memalign(size_t alignment, size_t size)
{
    void *address = NULL;
    if (posix_memalign(&address, alignment, size))
        address = NULL;
    return took(&call_posix_memalign_site, address, size);
}

/* Leaves a pointer where the result would be: only the status says that there is none. */
SITE(call_posix_memalign_fails);
static KEEP void call_posix_memalign_fails(size_t alignment, size_t size, int expected)
{
    void *address = &kept;
    if (posix_memalign(&address, alignment, size) != expected)
        fatal("posix_memalign did not fail as expected");
    took(&call_posix_memalign_fails_site, NULL, size);
}

SITE(call_aligned_alloc);
static KEEP struct block call_aligned_alloc(size_t alignment, size_t size)
{
    return took(&call_aligned_alloc_site, aligned_alloc(alignment, size), size);
}

SITE(call_memalign);
static KEEP struct block call_memalign(size_t alignment, size_t size)
{
    return took(&call_memalign_site, memalign(alignment, size), size);
}

SITE(call_valloc);
static KEEP struct block call_valloc(size_t size)
{
    return took(&call_valloc_site, valloc(size), size);
}

SITE(call_pvalloc);
static KEEP struct block call_pvalloc(size_t size)
{
    return took(&call_pvalloc_site, pvalloc(size), size);
}

/* Defines a site that resizes a block with `call` and counts the old one out. */
#define RESIZES(function, call)                                      \
    SITE(function);                                                  \
    static KEEP struct block function(struct block old, size_t size) \
    {                                                                \
        struct block new = took(&function##_site, call, size);       \
        if (!new.address)                                            \
            fatal(#function " failed");                              \
        gave(old);                                                   \
        return new;                                                  \
    }

RESIZES(call_realloc_null, realloc(NULL, size))
RESIZES(call_realloc_grow, realloc(old.address, size))
RESIZES(call_realloc_shrink, realloc(old.address, size))
RESIZES(call_realloc_move, realloc(old.address, size))
RESIZES(call_realloc_mapped, realloc(old.address, size))
RESIZES(call_reallocarray_null, reallocarray(NULL, size / 8, 8))
RESIZES(call_reallocarray_grow, reallocarray(old.address, size / 8, 8))

/* The old block stays. */
SITE(call_realloc_fails);
static KEEP void call_realloc_fails(struct block old)
{
    if (took(&call_realloc_fails_site, realloc(old.address, huge), huge).address)
        fatal("realloc of a huge size did not fail");
}

/* The old block stays. */
SITE(call_reallocarray_overflow);
static KEEP void call_reallocarray_overflow(struct block old)
{
    if (took(&call_reallocarray_overflow_site, reallocarray(old.address, huge, 16), 0).address)
        fatal("reallocarray did not see its overflow");
}

/* glibc frees the block and returns null. */
SITE(call_realloc_zero);
static KEEP void call_realloc_zero(struct block old)
{
    if (took(&call_realloc_zero_site, realloc(old.address, 0), 0).address)
        fatal("realloc(p, 0) returned a block");
    gave(old);
}

SITE(call_malloc_then_resize);
static KEEP struct block call_malloc_then_resize(size_t size)
{
    return took(&call_malloc_then_resize_site, malloc(size), size);
}

SITE(call_malloc_then_cfree);
static KEEP struct block call_malloc_then_cfree(size_t size)
{
    return took(&call_malloc_then_cfree_site, malloc(size), size);
}

static void allocate(int round)
{
    size_t size = 8 + (size_t)round * 24;
    keep_two_of_three(round, call_malloc(size));
    keep_two_of_three(round, call_malloc_zero());
    keep_two_of_three(round, call_calloc((size_t)round + 1, 24));
    keep_two_of_three(round, call_posix_memalign(256, size));
    keep_two_of_three(round, call_aligned_alloc(64, size * 64));
    keep_two_of_three(round, call_memalign(512, size));
    keep_two_of_three(round, call_valloc(size));
    keep_two_of_three(round, call_pvalloc(size));
    if (call_malloc_huge().address || call_calloc_overflow().address)
        fatal("a huge allocation did not fail");
    call_posix_memalign_fails(3, size, EINVAL);
    call_posix_memalign_fails(64, huge, ENOMEM);
    free(NULL);
    if (old_cfree) {
        struct block block = call_malloc_then_cfree(size);
        gave(block);
        old_cfree(block.address);
    }
}

static void resize(int round)
{
    size_t size = 64 + (size_t)round * 16;
    struct block none = { 0 };
    keep_two_of_three(round, call_realloc_null(none, size));
    keep_two_of_three(round, call_reallocarray_null(none, size));
    keep_two_of_three(round, call_realloc_grow(call_malloc_then_resize(size), size * 3));
    keep_two_of_three(round, call_realloc_shrink(call_malloc_then_resize(size * 4), size));
    keep_two_of_three(round, call_reallocarray_grow(call_malloc_then_resize(size), size * 2));

    /* Past the mmap threshold the block cannot stay where it is. */
    struct block small = call_malloc_then_resize(size);
    uintptr_t before = (uintptr_t)small.address;
    struct block moved = call_realloc_move(small, 1 << 20);
    if ((uintptr_t)moved.address == before)
        fatal("realloc did not move the block");
    give(call_realloc_mapped(moved, 3 << 20));

    struct block stays = call_malloc_then_resize(size);
    call_realloc_fails(stays);
    call_reallocarray_overflow(stays);
    keep_two_of_three(round, stays);
    call_realloc_zero(call_malloc_then_resize(size));
}

static void run(const char *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS; round++) {
        allocate(round);
        resize(round);
    }
}

/* Frees what was kept. */
static void drop(const char *argument)
{
    (void)argument;
    while (keeping)
        give(kept[--keeping]);
}

/* Says whether this glibc still has cfree. */
static void cfree_is(const char *argument)
{
    (void)argument;
    say("cfree %s", old_cfree ? "present" : "absent");
}

int main(void)
{
    /* A fixed threshold: glibc would raise it after the first large free and then realloc in place. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    *(void **)&old_cfree = dlvsym(RTLD_DEFAULT, "cfree", "GLIBC_2.2.5");
    serve((const struct command[]){ { "run", run }, { "drop", drop }, { "cfree", cfree_is }, { 0 } });
    return 0;
}
