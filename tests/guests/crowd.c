/*
 * Keeps as many blocks as it is told, from one place (`blocks N`) or each from a path of its own (`stacks N`), which the bits of a
 * number choose.
 */
#include "paths.h"

enum { BITS = 20 };

SITE(block_malloc);
static KEEP void block_malloc(void)
{
    took(&block_malloc_site, malloc(16), 16);
}

SITE(path_malloc);
static KEEP void path_malloc(void)
{
    took(&path_malloc_site, malloc(24), 24);
}

static void at_path(void)
{
    path_malloc();
}

static void blocks(const char *argument)
{
    for (long left = atol(argument); left > 0; left--)
        block_malloc();
}

static void stacks(const char *argument)
{
    long paths = atol(argument);
    if (paths > 1 << BITS)
        fatal("there are not so many paths");
    for (unsigned path = 0; path < paths; path++)
        through_zero(path, BITS);
}

int main(void)
{
    serve((const struct command[]){ { "blocks", blocks }, { "stacks", stacks }, { 0 } });
    return 0;
}
