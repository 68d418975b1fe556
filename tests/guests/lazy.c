/*
 * Allocates in a library's functions that are called through the PLT and bound at their first call: each has its
 * first call in `run`, through the dynamic linker's resolver, and others after it that go straight.
 */
#include "ledger.h"

void *library_one(size_t size);
void *library_two(size_t size);
void *library_calloc(size_t size);

enum { ROUNDS = 20 };

/* The functions are the library's; the ledger is here. */
SITE(library_one);
CHAIN(library_one, "library_one call_one run main");
SITE(library_two);
CHAIN(library_two, "library_two call_two run main");
SITE(library_calloc);
CHAIN(library_calloc, "library_calloc call_calloc run main");

SITE(lazy_aligned_alloc);
CHAIN(lazy_aligned_alloc, "lazy_aligned_alloc run main");
/* A function of the C library that nothing else in this program calls. */
static KEEP struct block lazy_aligned_alloc(size_t size)
{
    return took(&lazy_aligned_alloc_site, aligned_alloc(64, size), size);
}

static KEEP struct block call_one(size_t size)
{
    return took(&library_one_site, library_one(size), size);
}

static KEEP struct block call_two(size_t size)
{
    return took(&library_two_site, library_two(size), size);
}

static KEEP struct block call_calloc(size_t size)
{
    return took(&library_calloc_site, library_calloc(size), size);
}

static struct block kept[4];

static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t round = 0; round < ROUNDS; round++) {
        keep(0, call_one(100 + round));
        keep(1, call_two(200 + round));
        keep(2, call_calloc(300 + round));
        keep(3, lazy_aligned_alloc(64 * (1 + round)));
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
