/*
 * A library with an allocator under mimalloc's names, which signal handlers may call wherever they interrupt it: whether a slot is
 * taken is one word. A block of SLOTS_HELD bytes has a function of the program's called in the midst of the call.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

enum { SLOTS = 1 << 13, SLOT = 1024, SLOTS_HELD = 77 };

static _Alignas(16) char slots[SLOTS][SLOT];
static atomic_int taken[SLOTS];
static atomic_uint cursor;

void (*volatile slots_hook)(void);

static void *take(size_t size)
{
    if (size > SLOT)
        return NULL;
    for (unsigned tries = 0; tries < SLOTS; tries++) {
        unsigned slot = atomic_fetch_add(&cursor, 1) % SLOTS;
        int none = 0;
        if (atomic_compare_exchange_strong(&taken[slot], &none, 1))
            return slots[slot];
    }
    return NULL;
}

static void leave(void *block)
{
    if (block)
        atomic_store(&taken[((char *)block - slots[0]) / SLOT], 0);
}

void *mi_malloc(size_t size)
{
    if (size == SLOTS_HELD && slots_hook)
        slots_hook();
    return take(size);
}

void *mi_realloc(void *old, size_t size)
{
    void *block = take(size);
    if (block && old) {
        memcpy(block, old, size);
        leave(old);
    }
    return block;
}

void mi_free(void *block)
{
    leave(block);
}
