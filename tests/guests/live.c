/*
 * Keeps 100,000 blocks; `drop` frees them.
 */
#include "ledger.h"

enum { BLOCKS = 100000 };

static struct block kept[BLOCKS];

SITE(live_malloc);
static KEEP struct block live_malloc(size_t size)
{
    return took(&live_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++)
        kept[index] = live_malloc(40);
}

static void drop(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++)
        give(kept[index]);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "drop", drop }, { 0 } });
    return 0;
}
