/*
 * Allocates through 5,000 different call paths, which the bits of a number choose; through fewer where told how many.
 */
#include "ledger.h"

enum { PATHS = 5000, BITS = 13, RUNS = 8 };

static struct block kept[RUNS * PATHS];
static size_t keeping;

static KEEP void through_zero(unsigned path, int bits);
static KEEP void through_one(unsigned path, int bits);

SITE(path_malloc);
static KEEP struct block path_malloc(size_t size)
{
    return took(&path_malloc_site, malloc(size), size);
}

static void onwards(unsigned path, int bits)
{
    if (bits == 0)
        kept[keeping++] = path_malloc(24);
    else if (path & 1)
        through_one(path >> 1, bits - 1);
    else
        through_zero(path >> 1, bits - 1);
}

/* What each writes after its call is volatile, so that neither the calls nor the two become one. */
static KEEP void through_zero(unsigned path, int bits)
{
    volatile int turn;
    onwards(path, bits);
    turn = 0;
    (void)turn;
}

static KEEP void through_one(unsigned path, int bits)
{
    volatile int turn;
    onwards(path, bits);
    turn = 1;
    (void)turn;
}

static void run(const char *argument)
{
    unsigned paths = *argument ? (unsigned)atoi(argument) : PATHS;
    if (keeping + paths > sizeof kept / sizeof *kept)
        fatal("no room for more blocks");
    for (unsigned path = 0; path < paths; path++)
        through_zero(path, BITS);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
