/*
 * Allocates below 300 frames of three functions in turn, each with a frame of another size, so that a walk that
 * mistakes one for another does not go on.
 */
#include "ledger.h"

enum { DEPTH = 300, BLOCKS = 20 };

static struct block kept[BLOCKS];

SITE(staircase_malloc);
CHAIN(staircase_malloc, "staircase_malloc small large middle small large middle");
static KEEP struct block staircase_malloc(size_t size)
{
    return took(&staircase_malloc_site, malloc(size), size);
}

static KEEP int small(int depth, struct block *block);

static KEEP void touch(volatile char *locals)
{
    locals[0] = 1;
}

static KEEP int large(int depth, struct block *block)
{
    volatile char locals[200];
    touch(locals);
    return small(depth - 1, block) + locals[0];
}

static KEEP int middle(int depth, struct block *block)
{
    volatile char locals[72];
    touch(locals);
    return large(depth - 1, block) + locals[0];
}

static KEEP int small(int depth, struct block *block)
{
    volatile char locals[8];
    touch(locals);
    if (depth > 1)
        return middle(depth - 1, block) + locals[0];
    *block = staircase_malloc(48);
    return locals[0];
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        /* One more, for the walk begins and ends with `small`. */
        if (small(DEPTH + 1, &kept[index]) != DEPTH + 1)
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
