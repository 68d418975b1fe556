/*
 * Keeps blocks: 100,000 of 40 bytes by `run`, or as many as are asked for by `keep COUNT LEAST MOST`, of bytes from the least to the
 * most, as chance has it; `drop` frees them.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ledger.h"

enum { MOST_BLOCKS = 1000000 };

static struct block kept[MOST_BLOCKS];
static long count;

SITE(live_malloc);
static KEEP struct block live_malloc(size_t size)
{
    return took(&live_malloc_site, malloc(size), size);
}

static void keep(const char *argument)
{
    long blocks;
    size_t least, most;
    if (sscanf(argument, "%ld %zu %zu", &blocks, &least, &most) != 3 || most < least)
        abort();
    for (; blocks > 0 && count < MOST_BLOCKS; blocks--)
        kept[count++] = live_malloc(least + (size_t)rand() % (most - least + 1));
}

static void run(const char *argument)
{
    (void)argument;
    keep("100000 40 40");
}

static void drop(const char *argument)
{
    (void)argument;
    while (count)
        give(kept[--count]);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "keep", keep }, { "drop", drop }, { 0 } });
    return 0;
}
