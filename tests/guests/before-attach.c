/*
 * Has blocks from before the recording began; `run` frees some, resizes others, and allocates anew.
 *
 * The ledger starts with `run`: to a recording, a resized old block is an allocation, a freed one is nothing.
 */
#include "ledger.h"

enum { OLD = 300 };

static void *old[OLD];
static struct block kept[OLD];

SITE(resize_old);
static KEEP struct block resize_old(void *address, size_t size)
{
    return took(&resize_old_site, realloc(address, size), size);
}

SITE(allocate_new);
static KEEP struct block allocate_new(size_t size)
{
    return took(&allocate_new_site, malloc(size), size);
}

/* Old blocks by thirds: freed, resized, freed by realloc to nothing. */
static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < OLD; index++) {
        switch (index % 3) {
        case 0:
            free(old[index]);
            kept[index] = allocate_new(100);
            break;
        case 1:
            kept[index] = resize_old(old[index], 200 + (size_t)index);
            break;
        default:
            if (realloc(old[index], 0))
                fatal("realloc(p, 0) returned a block");
        }
    }
    for (int index = 0; index < OLD; index += 10)
        if (kept[index].address) {
            give(kept[index]);
            kept[index].address = NULL;
        }
}

int main(void)
{
    for (int index = 0; index < OLD; index++)
        old[index] = malloc(100);
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
