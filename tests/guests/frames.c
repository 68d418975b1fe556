/*
 * Allocates below frames of unusual shapes: with alloca, with a variable array, with locals that want more alignment
 * than the stack has, with both, and in a `main` that realigns its own frame.
 */
#include "ledger.h"

#include <alloca.h>

enum { ROUNDS = 100 };

static struct block kept[4];
static volatile size_t variable = 3;

/* Reads and writes what it is given, so that the array has to be there. */
static KEEP void touch(void *array)
{
    *(volatile char *)array += 1;
}

SITE(alloca_malloc);
CHAIN(alloca_malloc, "alloca_malloc with_alloca run main");
static KEEP struct block alloca_malloc(size_t size)
{
    return took(&alloca_malloc_site, malloc(size), size);
}

static KEEP struct block with_alloca(size_t size)
{
    char *array = alloca(variable * size);
    touch(array);
    struct block block = alloca_malloc(size);
    touch(array);
    return block;
}

SITE(aligned_malloc);
CHAIN(aligned_malloc, "aligned_malloc with_aligned with_odd_frame run main");
static KEEP struct block aligned_malloc(size_t size)
{
    return took(&aligned_malloc_site, malloc(size), size);
}

static KEEP struct block with_aligned(size_t size)
{
    char array[128] __attribute__((aligned(64)));
    array[0] = 0;
    touch(array);
    struct block block = aligned_malloc(size);
    touch(array);
    return block;
}

/* So that what is realigned below it lies at another distance than below `run`. */
static KEEP struct block with_odd_frame(size_t size)
{
    char array[24];
    array[0] = 0;
    touch(array);
    struct block block = with_aligned(size);
    touch(array);
    return block;
}

SITE(both_malloc);
CHAIN(both_malloc, "both_malloc with_both run main");
static KEEP struct block both_malloc(size_t size)
{
    return took(&both_malloc_site, malloc(size), size);
}

static KEEP struct block with_both(size_t size)
{
    char aligned[64] __attribute__((aligned(256)));
    char array[variable * 40];
    aligned[0] = array[0] = 0;
    touch(aligned);
    touch(array);
    struct block block = both_malloc(size);
    touch(aligned);
    touch(array);
    return block;
}

SITE(many_arguments_malloc);
CHAIN(many_arguments_malloc, "many_arguments_malloc with_many_arguments run main");
static KEEP struct block many_arguments_malloc(size_t size)
{
    return took(&many_arguments_malloc_site, malloc(size), size);
}

/* Four of its arguments are on the caller's stack, which the caller pushes and takes back. */
static KEEP struct block with_many_arguments(size_t a, size_t b, size_t c, size_t d, size_t e, size_t f,
                                             size_t g, size_t h, size_t i, size_t j)
{
    return many_arguments_malloc(a + b + c + d + e + f + g + h + i + j);
}

static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t round = 0; round < ROUNDS; round++) {
        variable = 1 + round % 7;
        keep(0, with_alloca(100 + round));
        keep(1, with_odd_frame(200 + round));
        keep(2, with_both(300 + round));
        keep(3, with_many_arguments(round, 1, 2, 3, 4, 5, 6, 7, 8, 9));
    }
}

int main(void)
{
    char array[128] __attribute__((aligned(64)));
    array[0] = 0;
    touch(array);
    serve((const struct command[]){ { "run", run }, { 0 } });
    touch(array);
    return 0;
}
