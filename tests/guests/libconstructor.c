/*
 * The shared library of constructor.c: it allocates as soon as it has been mapped and relocated.
 */
#include "ledger.h"

void library_ledger(void);

enum { BLOCKS = 30 };

static struct block kept[BLOCKS];

SITE(library_constructor_malloc);
static KEEP struct block library_constructor_malloc(size_t size)
{
    return took(&library_constructor_malloc_site, malloc(size), size);
}

__attribute__((constructor)) static void construct(void)
{
    for (int index = 0; index < BLOCKS; index++) {
        kept[index] = library_constructor_malloc(300);
        if (index % 3 == 0)
            give(kept[index]);
    }
}

/* Prints this library's part of the ledger. */
void library_ledger(void)
{
    print_ledger();
}
