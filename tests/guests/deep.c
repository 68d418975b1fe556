/*
 * Allocates at the end of 300 calls to the same function: deeper than a profile's stacks are.
 */
#include "ledger.h"

enum { DEPTH = 300, BLOCKS = 50 };

static struct block kept[BLOCKS];

SITE(deep_malloc);
static KEEP struct block deep_malloc(size_t size)
{
    return took(&deep_malloc_site, malloc(size), size);
}

/* Volatile, so that the recursion does not become a loop. */
static KEEP int descend(int depth, struct block *block)
{
    volatile int frames = 1;
    if (depth == 0)
        *block = deep_malloc(48);
    else
        frames += descend(depth - 1, block);
    return frames;
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        if (descend(DEPTH, &kept[index]) != DEPTH + 1)
            fatal("lost count");
        if (index % 2)
            give(kept[index]);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
