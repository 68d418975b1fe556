/* A library with an allocator under mimalloc's names: it gives each block anew, and takes none back. */
#include <stddef.h>
#include <string.h>

enum { HEAP = 1 << 20, ALIGNMENT = 16 };

static _Alignas(ALIGNMENT) char heap[HEAP];
static size_t given;

void *mi_malloc(size_t size)
{
    size_t rounded = (size + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (rounded > HEAP - given)
        return NULL;
    void *block = heap + given;
    given += rounded;
    return block;
}

void *mi_realloc(void *old, size_t size)
{
    void *block = mi_malloc(size);
    if (block && old)
        memmove(block, old, size);
    return block;
}

void mi_free(void *block)
{
    /* Something to stand in for work, so that this is a function like any. */
    __asm__ volatile("" : : "r"(block) : "memory");
}
