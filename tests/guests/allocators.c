/*
 * Calls every function of whichever allocator it runs on, in each of its outcomes, from a site of its own and on several
 * threads.
 *
 * It is built against several allocators, or is given one by LD_PRELOAD, and finds out at run time what there is: all
 * that not every allocator has is a weak symbol.
 */
#include "allocators.h"

#include <dlfcn.h>
#include <malloc.h>

enum { ROUNDS = 24 };

/* More than any allocator has, and out of the compiler's sight, which would warn. */
static volatile size_t huge = PTRDIFF_MAX - 4096;

#define OPTIONAL(result, function, ...) extern __attribute__((weak)) result function(__VA_ARGS__)

OPTIONAL(void *, pvalloc, size_t);

/* jemalloc, without a prefix as Debian builds it. */
OPTIONAL(void *, mallocx, size_t, int);
OPTIONAL(void *, rallocx, void *, size_t, int);
OPTIONAL(size_t, xallocx, void *, size_t, size_t, int);
OPTIONAL(void, dallocx, void *, int);
OPTIONAL(void, sdallocx, void *, size_t, int);

/* gperftools. The operators' tag is a reference, which is passed as a pointer is. */
OPTIONAL(void *, tc_malloc, size_t);
OPTIONAL(void *, tc_malloc_skip_new_handler, size_t);
OPTIONAL(void *, tc_calloc, size_t, size_t);
OPTIONAL(void *, tc_realloc, void *, size_t);
OPTIONAL(void *, tc_memalign, size_t, size_t);
OPTIONAL(int, tc_posix_memalign, void **, size_t, size_t);
OPTIONAL(void *, tc_valloc, size_t);
OPTIONAL(void *, tc_pvalloc, size_t);
OPTIONAL(void *, tc_new, size_t);
OPTIONAL(void *, tc_new_nothrow, size_t, const void *);
OPTIONAL(void *, tc_new_aligned, size_t, size_t);
OPTIONAL(void *, tc_newarray, size_t);
OPTIONAL(void *, tc_newarray_nothrow, size_t, const void *);
OPTIONAL(void, tc_free, void *);
OPTIONAL(void, tc_free_sized, void *, size_t);
OPTIONAL(void, tc_cfree, void *);
OPTIONAL(void, tc_delete, void *);
OPTIONAL(void, tc_delete_sized, void *, size_t);
OPTIONAL(void, tc_delete_aligned, void *, size_t);
OPTIONAL(void, tc_delete_nothrow, void *, const void *);
OPTIONAL(void, tc_deletearray, void *);
OPTIONAL(void, tc_deletearray_nothrow, void *, const void *);

/* Google's tcmalloc, whose tag says how often a block will be used. */
struct sized_block {
    void *address;
    size_t size;
};
OPTIONAL(struct sized_block, __size_returning_new, size_t);
OPTIONAL(struct sized_block, __size_returning_new_aligned, size_t, size_t);
OPTIONAL(struct sized_block, __size_returning_new_hot_cold, size_t, uint8_t);
OPTIONAL(struct sized_block, __size_returning_new_aligned_hot_cold, size_t, size_t, uint8_t);
OPTIONAL(struct sized_block, tcmalloc_size_returning_operator_new_nothrow, size_t);
OPTIONAL(struct sized_block, tcmalloc_size_returning_operator_new_aligned_nothrow, size_t, size_t);
OPTIONAL(void *, TCMallocInternalMalloc, size_t);
OPTIONAL(void, TCMallocInternalFree, void *);
OPTIONAL(void, TCMallocInternalDeleteSizedAligned, void *, size_t, size_t);
OPTIONAL(void, free_sized, void *, size_t);
OPTIONAL(void, free_aligned_sized, void *, size_t, size_t);

OPTIONAL(void *, mi_malloc, size_t);
OPTIONAL(void *, mi_zalloc, size_t);
OPTIONAL(void *, mi_calloc, size_t, size_t);
OPTIONAL(void *, mi_mallocn, size_t, size_t);
OPTIONAL(void *, mi_malloc_small, size_t);
OPTIONAL(void *, mi_zalloc_small, size_t);
OPTIONAL(void *, mi_malloc_aligned, size_t, size_t);
OPTIONAL(void *, mi_zalloc_aligned, size_t, size_t);
OPTIONAL(void *, mi_calloc_aligned, size_t, size_t, size_t);
OPTIONAL(int, mi_posix_memalign, void **, size_t, size_t);
OPTIONAL(void *, mi_realloc, void *, size_t);
OPTIONAL(void *, mi_reallocf, void *, size_t);
OPTIONAL(void *, mi_reallocn, void *, size_t, size_t);
OPTIONAL(void *, mi_realloc_aligned, void *, size_t, size_t);
OPTIONAL(void *, mi_rezalloc, void *, size_t);
OPTIONAL(void *, mi_recalloc, void *, size_t, size_t);
OPTIONAL(void *, mi_expand, void *, size_t);
OPTIONAL(void *, mi_heap_new, void);
OPTIONAL(void *, mi_heap_malloc, void *, size_t);
OPTIONAL(void *, mi_heap_zalloc, void *, size_t);
OPTIONAL(void *, mi_heap_calloc, void *, size_t, size_t);
OPTIONAL(void *, mi_heap_realloc, void *, void *, size_t);
OPTIONAL(void *, mi_heap_malloc_aligned, void *, size_t, size_t);
OPTIONAL(void *, mi_new, size_t);
OPTIONAL(void *, mi_new_n, size_t, size_t);
OPTIONAL(void *, mi_new_aligned, size_t, size_t);
OPTIONAL(void *, mi_new_nothrow, size_t);
OPTIONAL(void *, mi_new_aligned_nothrow, size_t, size_t);
OPTIONAL(void, mi_free, void *);
OPTIONAL(void, mi_free_size, void *, size_t);
OPTIONAL(void, mi_free_aligned, void *, size_t);
OPTIONAL(void, mi_free_size_aligned, void *, size_t, size_t);

/* Stands for std::nothrow, which has no state. */
static const char nothrow;

static const struct block none = { NULL, 0, NULL };

/* A site that allocates `size` bytes, with two more numbers if it needs them. */
#define TAKES(function, call)                                                                  \
    SITE(function);                                                                            \
    static KEEP struct block function(size_t size, size_t more)                                \
    {                                                                                          \
        (void)more;                                                                            \
        return took(&function##_site, call, size);                                             \
    }

/* A site that resizes a block and counts the old one out. */
#define RESIZES(function, call)                                                                \
    SITE(function);                                                                            \
    static KEEP struct block function(struct block old, size_t size)                           \
    {                                                                                          \
        struct block resized = took(&function##_site, call, size);                             \
        if (!resized.address)                                                                  \
            fatal(#function " failed");                                                        \
        gave(old);                                                                             \
        return resized;                                                                        \
    }

/* A site whose call has to fail. The block `old`, if there is any, stays. */
#define FAILS(function, call)                                                                  \
    SITE(function);                                                                            \
    static KEEP void function(struct block old)                                                \
    {                                                                                          \
        (void)old;                                                                             \
        if (took(&function##_site, call, 0).address)                                           \
            fatal(#function " did not fail");                                                  \
    }

/* A way to free; no site, for what it frees is on the ledger of another. */
#define GIVES(function, call)                                                                  \
    static KEEP void function(struct block block)                                              \
    {                                                                                          \
        gave(block);                                                                           \
        call;                                                                                  \
    }

TAKES(call_malloc, malloc(size))
TAKES(call_malloc_zero, malloc(size))
TAKES(call_malloc_large, malloc(size))
TAKES(call_calloc, calloc(size / more, more))
TAKES(call_aligned_alloc, aligned_alloc(more, size))
TAKES(call_memalign, memalign(more, size))
TAKES(call_valloc, valloc(size))
TAKES(call_pvalloc, pvalloc(size))
TAKES(call_malloc_then_resize, malloc(size))
RESIZES(call_realloc_null, realloc(NULL, size))
RESIZES(call_realloc_grow, realloc(old.address, size))
RESIZES(call_realloc_shrink, realloc(old.address, size))
RESIZES(call_realloc_large, realloc(old.address, size))
RESIZES(call_reallocarray_null, reallocarray(NULL, size / 8, 8))
RESIZES(call_reallocarray, reallocarray(old.address, size / 8, 8))
FAILS(call_malloc_huge, malloc(huge))
FAILS(call_calloc_overflow, calloc(huge, 16))
FAILS(call_realloc_huge, realloc(old.address, huge))
FAILS(call_reallocarray_overflow, reallocarray(old.address, huge, 16))

SITE(call_posix_memalign);
static KEEP struct block call_posix_memalign(size_t size, size_t alignment)
{
    void *address = NULL;
    if (posix_memalign(&address, alignment, size))
        address = NULL;
    return took(&call_posix_memalign_site, address, size);
}

/* Leaves a pointer where the result would be: only the status says that there is none. */
SITE(call_posix_memalign_fails);
static KEEP void call_posix_memalign_fails(size_t size, size_t alignment, int expected)
{
    void *address = &workers;
    if (posix_memalign(&address, alignment, size) != expected)
        fatal("posix_memalign did not fail as expected");
    took(&call_posix_memalign_fails_site, NULL, size);
}

/* Allocators differ: the block is gone (glibc, tcmalloc), or there is one of 0 bytes in its place. */
SITE(call_realloc_zero);
static KEEP struct block call_realloc_zero(struct block old)
{
    struct block resized = took(&call_realloc_zero_site, realloc(old.address, 0), 0);
    gave(old);
    return resized;
}

/*
 * Whether a function belongs to the allocator. Where only libc has a function whose memory malloc's owner cannot free,
 * as with jemalloc and pvalloc, nobody may call it.
 */
static int owned(void *function)
{
    Dl_info here, there;
    if (!function)
        return 0;
    /* No answer in a static program, where there is only one object. */
    if (!dladdr(function, &here) || !dladdr((void *)malloc, &there))
        return 1;
    return here.dli_fbase == there.dli_fbase;
}

static int has_pvalloc;

static void standard(struct worker *worker, int round)
{
    size_t size = 8 + (size_t)round * 24;
    settle(worker, round, call_malloc(size, 0), give);
    settle(worker, round, call_malloc_zero(0, 0), give);
    settle(worker, round, call_malloc_large(size << 12, 0), give);
    settle(worker, round, call_calloc(size, 8), give);
    settle(worker, round, call_posix_memalign(size, 256), give);
    settle(worker, round, call_aligned_alloc(size * 64, 64), give);
    settle(worker, round, call_memalign(size, 512), give);
    settle(worker, round, call_valloc(size, 0), give);
    if (has_pvalloc)
        settle(worker, round, call_pvalloc(size, 0), give);
    call_malloc_huge(none);
    call_calloc_overflow(none);
    call_posix_memalign_fails(size, 3, EINVAL);
    call_posix_memalign_fails(huge, 64, ENOMEM);
    free(NULL);

    settle(worker, round, call_realloc_null(none, size), give);
    settle(worker, round, call_realloc_grow(call_malloc_then_resize(size, 0), size * 3), give);
    settle(worker, round, call_realloc_shrink(call_malloc_then_resize(size * 4, 0), size), give);
    struct block large = call_realloc_large(call_malloc_then_resize(size, 0), 1 << 20);
    settle(worker, round, call_realloc_large(large, 3 << 20), give);
    struct block stays = call_malloc_then_resize(size, 0);
    call_realloc_huge(stays);
    give(call_realloc_zero(call_malloc_then_resize(size, 0)));
    call_reallocarray_overflow(stays);
    settle(worker, round, call_reallocarray_null(none, size), give);
    settle(worker, round, call_reallocarray(call_malloc_then_resize(size, 0), size * 2), give);
    settle(worker, round, stays, give);
}

/* MALLOCX_ALIGN(256) and MALLOCX_ZERO: a macro's logarithm, and a bit. */
enum { X_ALIGN_256 = 8, X_ZERO = 0x40 };

TAKES(call_mallocx, mallocx(size, 0))
TAKES(call_mallocx_zero, mallocx(size, X_ZERO))
TAKES(call_mallocx_aligned, mallocx(size, X_ALIGN_256))
RESIZES(call_rallocx, rallocx(old.address, size, 0))
RESIZES(call_rallocx_aligned, rallocx(old.address, size, X_ALIGN_256))
FAILS(call_mallocx_huge, mallocx(huge, 0))
FAILS(call_rallocx_huge, rallocx(old.address, huge, 0))
GIVES(give_dallocx, dallocx(block.address, 0))
GIVES(give_dallocx_aligned, dallocx(block.address, X_ALIGN_256))
GIVES(give_sdallocx, sdallocx(block.address, block.size, 0))

/*
 * The result is the block's real size. The block has the size that was asked for where that fits; otherwise it is as it
 * was. `extra` is what the caller would like to have on top, and does not count.
 */
SITE(call_xallocx);
static KEEP struct block call_xallocx(struct block old, size_t size, size_t extra)
{
    if (xallocx(old.address, size, extra, 0) < size)
        return old;
    struct block resized = took(&call_xallocx_site, old.address, size);
    gave(old);
    return resized;
}

static void jemalloc(struct worker *worker, int round)
{
    size_t size = 40 + (size_t)round * 24;
    settle(worker, round, call_mallocx(size, 0), give_dallocx);
    settle(worker, round, call_mallocx_zero(size, 0), give_sdallocx);
    settle(worker, round, call_mallocx_aligned(size, 0), give_dallocx_aligned);
    struct block grown = call_rallocx(call_mallocx(size, 0), size * 5);
    call_rallocx_huge(grown);
    settle(worker, round, grown, give_sdallocx);
    settle(worker, round, call_rallocx_aligned(call_mallocx_aligned(size, 0), size * 2), give_dallocx);
    call_mallocx_huge(none);
    /* Within its size class, far beyond it, and where there may be room behind the block. */
    settle(worker, round, call_xallocx(call_mallocx(size, 0), size + 1, 0), give_dallocx);
    settle(worker, round, call_xallocx(call_mallocx(size, 0), size * 100, 0), give_dallocx);
    settle(worker, round, call_xallocx(call_mallocx(256 << 10, 0), 16 << 10, 0), give_dallocx);
    settle(worker, round, call_xallocx(call_mallocx(128 << 10, 0), 129 << 10, 64 << 10), give_dallocx);
}

TAKES(call_tc_malloc, tc_malloc(size))
TAKES(call_tc_malloc_skip_new_handler, tc_malloc_skip_new_handler(size))
TAKES(call_tc_calloc, tc_calloc(size / 8, 8))
TAKES(call_tc_memalign, tc_memalign(more, size))
TAKES(call_tc_valloc, tc_valloc(size))
TAKES(call_tc_pvalloc, tc_pvalloc(size))
TAKES(call_tc_new, tc_new(size))
TAKES(call_tc_new_nothrow, tc_new_nothrow(size, &nothrow))
TAKES(call_tc_new_aligned, tc_new_aligned(size, more))
TAKES(call_tc_newarray, tc_newarray(size))
TAKES(call_tc_newarray_nothrow, tc_newarray_nothrow(size, &nothrow))
RESIZES(call_tc_realloc, tc_realloc(old.address, size))
FAILS(call_tc_malloc_huge, tc_malloc(huge))
FAILS(call_tc_realloc_huge, tc_realloc(old.address, huge))
FAILS(call_tc_new_nothrow_huge, tc_new_nothrow(huge, &nothrow))
GIVES(give_tc_free, tc_free(block.address))
GIVES(give_tc_free_sized, tc_free_sized(block.address, block.size))
GIVES(give_tc_cfree, tc_cfree(block.address))
GIVES(give_tc_delete, tc_delete(block.address))
GIVES(give_tc_delete_sized, tc_delete_sized(block.address, block.size))
GIVES(give_tc_delete_aligned, tc_delete_aligned(block.address, 128))
GIVES(give_tc_delete_nothrow, tc_delete_nothrow(block.address, &nothrow))
GIVES(give_tc_deletearray, tc_deletearray(block.address))
GIVES(give_tc_deletearray_nothrow, tc_deletearray_nothrow(block.address, &nothrow))

SITE(call_tc_posix_memalign);
static KEEP struct block call_tc_posix_memalign(size_t size, size_t alignment)
{
    void *address = NULL;
    if (tc_posix_memalign(&address, alignment, size))
        address = NULL;
    return took(&call_tc_posix_memalign_site, address, size);
}

static void tcmalloc(struct worker *worker, int round)
{
    size_t size = 8 + (size_t)round * 40;
    settle(worker, round, call_tc_malloc(size, 0), give_tc_free);
    settle(worker, round, call_tc_malloc(size * 2, 0), give_tc_free_sized);
    settle(worker, round, call_tc_malloc_skip_new_handler(size, 0), give_tc_cfree);
    settle(worker, round, call_tc_calloc(size, 0), give_tc_free);
    settle(worker, round, call_tc_memalign(size, 512), give_tc_free);
    settle(worker, round, call_tc_posix_memalign(size, 256), give_tc_free);
    settle(worker, round, call_tc_valloc(size, 0), give_tc_free);
    settle(worker, round, call_tc_pvalloc(size, 0), give_tc_free);
    settle(worker, round, call_tc_new(size, 0), give_tc_delete);
    settle(worker, round, call_tc_new(size, 0), give_tc_delete_sized);
    settle(worker, round, call_tc_new_nothrow(size, 0), give_tc_delete_nothrow);
    settle(worker, round, call_tc_new_aligned(size, 128), give_tc_delete_aligned);
    settle(worker, round, call_tc_newarray(size, 0), give_tc_deletearray);
    settle(worker, round, call_tc_newarray_nothrow(size, 0), give_tc_deletearray_nothrow);
    struct block grown = call_tc_realloc(call_tc_malloc(size, 0), size * 4);
    call_tc_realloc_huge(grown);
    settle(worker, round, grown, give_tc_free);
    call_tc_malloc_huge(none);
    call_tc_new_nothrow_huge(none);
}

/* Of the two uses that a block may be for, that of one which will hardly be used has pages of its own. */
enum { COLD = 0, HOT = 255 };

TAKES(call_internal_malloc, TCMallocInternalMalloc(size))
TAKES(call_size_returning_new, __size_returning_new(size).address)
TAKES(call_size_returning_new_aligned, __size_returning_new_aligned(size, more).address)
TAKES(call_size_returning_new_hot_cold, __size_returning_new_hot_cold(size, (uint8_t)more).address)
TAKES(call_size_returning_new_aligned_cold, __size_returning_new_aligned_hot_cold(size, more, COLD).address)
TAKES(call_size_returning_new_nothrow, tcmalloc_size_returning_operator_new_nothrow(size).address)
TAKES(call_size_returning_new_aligned_nothrow,
      tcmalloc_size_returning_operator_new_aligned_nothrow(size, more).address)
FAILS(call_size_returning_new_nothrow_huge, tcmalloc_size_returning_operator_new_nothrow(huge).address)
GIVES(give_internal_free, TCMallocInternalFree(block.address))
GIVES(give_internal_delete, TCMallocInternalDeleteSizedAligned(block.address, block.size, 128))
GIVES(give_free_sized, free_sized(block.address, block.size))
GIVES(give_free_aligned_sized, free_aligned_sized(block.address, 128, block.size))

static void google_tcmalloc(struct worker *worker, int round)
{
    size_t size = 8 + (size_t)round * 40;
    settle(worker, round, call_internal_malloc(size, 0), give_internal_free);
    settle(worker, round, call_malloc(size, 0), give_free_sized);
    settle(worker, round, call_malloc(size, 0), give_sdallocx);
    settle(worker, round, call_malloc_large(size << 12, 0), give_free_sized);
    settle(worker, round, call_aligned_alloc(size * 128, 128), give_free_aligned_sized);
    settle(worker, round, call_size_returning_new(size, 0), give_free_sized);
    settle(worker, round, call_size_returning_new(size << 12, 0), give);
    settle(worker, round, call_size_returning_new_aligned(size, 128), give_internal_delete);
    settle(worker, round, call_size_returning_new_hot_cold(size, HOT), give);
    settle(worker, round, call_size_returning_new_hot_cold(size, COLD), give);
    settle(worker, round, call_size_returning_new_aligned_cold(size, 256), give);
    settle(worker, round, call_size_returning_new_nothrow(size, 0), give);
    settle(worker, round, call_size_returning_new_aligned_nothrow(size, 256), give);
    call_size_returning_new_nothrow_huge(none);
}

TAKES(call_mi_malloc, mi_malloc(size))
TAKES(call_mi_zalloc, mi_zalloc(size))
TAKES(call_mi_calloc, mi_calloc(size / 8, 8))
TAKES(call_mi_mallocn, mi_mallocn(size / 8, 8))
TAKES(call_mi_malloc_small, mi_malloc_small(size))
TAKES(call_mi_zalloc_small, mi_zalloc_small(size))
TAKES(call_mi_malloc_aligned, mi_malloc_aligned(size, more))
TAKES(call_mi_zalloc_aligned, mi_zalloc_aligned(size, more))
TAKES(call_mi_calloc_aligned, mi_calloc_aligned(size / 8, 8, more))
TAKES(call_mi_new, mi_new(size))
TAKES(call_mi_new_n, mi_new_n(size / 8, 8))
TAKES(call_mi_new_aligned, mi_new_aligned(size, more))
TAKES(call_mi_new_nothrow, mi_new_nothrow(size))
TAKES(call_mi_new_aligned_nothrow, mi_new_aligned_nothrow(size, more))
RESIZES(call_mi_realloc, mi_realloc(old.address, size))
RESIZES(call_mi_reallocf, mi_reallocf(old.address, size))
RESIZES(call_mi_reallocn, mi_reallocn(old.address, size / 8, 8))
RESIZES(call_mi_realloc_aligned, mi_realloc_aligned(old.address, size, 128))
RESIZES(call_mi_rezalloc, mi_rezalloc(old.address, size))
RESIZES(call_mi_recalloc, mi_recalloc(old.address, size / 8, 8))
FAILS(call_mi_malloc_huge, mi_malloc(huge))
FAILS(call_mi_realloc_huge, mi_realloc(old.address, huge))
FAILS(call_mi_reallocf_huge, mi_reallocf(old.address, huge))
FAILS(call_mi_calloc_overflow, mi_calloc(huge, 16))
GIVES(give_mi_free, mi_free(block.address))
GIVES(give_mi_free_size, mi_free_size(block.address, block.size))
GIVES(give_mi_free_aligned, mi_free_aligned(block.address, 128))
GIVES(give_mi_free_size_aligned, mi_free_size_aligned(block.address, block.size, 128))

SITE(call_mi_posix_memalign);
static KEEP struct block call_mi_posix_memalign(size_t size, size_t alignment)
{
    void *address = NULL;
    if (mi_posix_memalign(&address, alignment, size))
        address = NULL;
    return took(&call_mi_posix_memalign_site, address, size);
}

/* Resizes in place or not at all. */
SITE(call_mi_expand);
static KEEP struct block call_mi_expand(struct block old, size_t size)
{
    struct block resized = took(&call_mi_expand_site, mi_expand(old.address, size), size);
    if (!resized.address)
        return old;
    gave(old);
    return resized;
}

/* A site that allocates from a heap of the thread's own. */
#define FROM_HEAP(function, call)                                                              \
    SITE(function);                                                                            \
    static KEEP struct block function(void *heap, struct block old, size_t size)               \
    {                                                                                          \
        struct block block = took(&function##_site, call, size);                               \
        gave(old);                                                                             \
        return block;                                                                          \
    }

FROM_HEAP(call_mi_heap_malloc, mi_heap_malloc(heap, size))
FROM_HEAP(call_mi_heap_zalloc, mi_heap_zalloc(heap, size))
FROM_HEAP(call_mi_heap_calloc, mi_heap_calloc(heap, size / 8, 8))
FROM_HEAP(call_mi_heap_malloc_aligned, mi_heap_malloc_aligned(heap, size, 256))
FROM_HEAP(call_mi_heap_realloc, mi_heap_realloc(heap, old.address, size))

static void mimalloc(struct worker *worker, int round)
{
    size_t size = 8 + (size_t)round * 40;
    settle(worker, round, call_mi_malloc(size, 0), give_mi_free);
    settle(worker, round, call_mi_zalloc(size, 0), give_mi_free_size);
    settle(worker, round, call_mi_calloc(size, 0), give_mi_free);
    settle(worker, round, call_mi_mallocn(size, 0), give_mi_free);
    settle(worker, round, call_mi_malloc_small(size, 0), give_mi_free);
    settle(worker, round, call_mi_zalloc_small(size, 0), give_mi_free);
    settle(worker, round, call_mi_malloc_aligned(size, 128), give_mi_free_aligned);
    settle(worker, round, call_mi_zalloc_aligned(size, 128), give_mi_free_size_aligned);
    settle(worker, round, call_mi_calloc_aligned(size, 512), give_mi_free);
    settle(worker, round, call_mi_posix_memalign(size, 256), give_mi_free);
    settle(worker, round, call_mi_new(size, 0), give_mi_free);
    settle(worker, round, call_mi_new_n(size, 0), give_mi_free);
    settle(worker, round, call_mi_new_aligned(size, 128), give_mi_free_aligned);
    settle(worker, round, call_mi_new_nothrow(size, 0), give_mi_free);
    settle(worker, round, call_mi_new_aligned_nothrow(size, 128), give_mi_free_aligned);

    struct block grown = call_mi_realloc(call_mi_malloc(size, 0), size * 4);
    call_mi_realloc_huge(grown);
    settle(worker, round, call_mi_reallocf(grown, size * 8), give_mi_free);
    struct block gone = call_mi_malloc(size, 0);
    gave(gone);
    call_mi_reallocf_huge(gone);
    settle(worker, round, call_mi_reallocn(call_mi_malloc(size, 0), size * 2), give_mi_free);
    settle(worker, round, call_mi_realloc_aligned(call_mi_malloc_aligned(size, 128), size * 3), give_mi_free_aligned);
    settle(worker, round, call_mi_rezalloc(call_mi_zalloc(size, 0), size * 3), give_mi_free);
    settle(worker, round, call_mi_recalloc(call_mi_zalloc(size, 0), size * 3), give_mi_free);
    settle(worker, round, call_mi_expand(call_mi_malloc(size, 0), size - 1), give_mi_free);
    settle(worker, round, call_mi_expand(call_mi_malloc(size, 0), size * 100), give_mi_free);
    call_mi_malloc_huge(none);
    call_mi_calloc_overflow(none);

    void *heap = worker->heap;
    settle(worker, round, call_mi_heap_malloc(heap, none, size), give_mi_free);
    settle(worker, round, call_mi_heap_zalloc(heap, none, size), give_mi_free);
    settle(worker, round, call_mi_heap_calloc(heap, none, size), give_mi_free);
    settle(worker, round, call_mi_heap_malloc_aligned(heap, none, size), give_mi_free);
    settle(worker, round, call_mi_heap_realloc(heap, call_mi_heap_malloc(heap, none, size), size * 2), give_mi_free);
}

static void work(struct worker *worker)
{
    /* A heap belongs to its thread. */
    if (!worker->heap && mi_heap_new)
        worker->heap = mi_heap_new();
    for (int round = 0; round < ROUNDS; round++) {
        standard(worker, round);
        if (mallocx)
            jemalloc(worker, round);
        if (tc_malloc)
            tcmalloc(worker, round);
        if (__size_returning_new)
            google_tcmalloc(worker, round);
        if (mi_malloc)
            mimalloc(worker, round);
    }
}

static void run(const char *argument)
{
    (void)argument;
    free_early();
    run_workers(work);
}

int main(int count, char **arguments)
{
    has_pvalloc = owned((void *)pvalloc);
    return serve_or_report(count, arguments, (const struct command[]){
        { "run", run }, { "drop", drop }, { "forget", forget }, { "unknown", print_unknown }, { 0 }
    }, run);
}
