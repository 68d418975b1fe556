/*
 * Gives large blocks back behind the allocator's back, with munmap: their frees are never seen, and the next block
 * of that size gets the same address.
 */
#include "ledger.h"

#include <sys/mman.h>

enum { BLOCKS = 50, SIZE = 1 << 20, PAGE = 4096, HEADER = 16 };

static struct block last;

SITE(large_malloc);
static KEEP struct block large_malloc(size_t size)
{
    return took(&large_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        struct block block = large_malloc(SIZE);
        if (index > 0 && block.address != last.address)
            fatal("a block of that size does not get the address of the one before");
        last = block;
        if (index == BLOCKS - 1)
            break;
        /* A block of its own mapping begins behind a header, which is where the mapping begins. */
        if (munmap((char *)block.address - HEADER, SIZE + PAGE))
            fatal("munmap");
        gave(block);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
