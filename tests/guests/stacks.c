/*
 * Allocates through 5,000 different call paths, which the bits of a number choose; through fewer where told how many.
 */
#include "paths.h"

enum { PATHS = 5000, BITS = 13, RUNS = 8 };

static struct block kept[RUNS * PATHS];
static size_t keeping;

SITE(path_malloc);
static KEEP struct block path_malloc(size_t size)
{
    return took(&path_malloc_site, malloc(size), size);
}

static void at_path(void)
{
    kept[keeping++] = path_malloc(24);
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
