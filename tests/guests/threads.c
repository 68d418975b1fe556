/*
 * Eight threads that allocate, resize, and free each other's blocks.
 *
 * Blocks change hands through a table of shared slots; what is in it at the end of `run` stays allocated.
 * Every block begins with its own entry for the ledger, so that whoever frees it knows whose it was.
 */
#include "ledger.h"

#include <pthread.h>

enum { THREADS = 8, STEPS = 4000, SLOTS = 256 };

static _Atomic(struct block *) slots[SLOTS];

SITE(thread_malloc);
static KEEP struct block thread_malloc(size_t size)
{
    return took(&thread_malloc_site, malloc(size), size);
}

SITE(thread_calloc);
static KEEP struct block thread_calloc(size_t size)
{
    return took(&thread_calloc_site, calloc(1, size), size);
}

SITE(thread_realloc);
static KEEP struct block thread_realloc(struct block old, size_t size)
{
    /* Off the ledger first: the call may give the block's address to another thread. */
    gave(old);
    return took(&thread_realloc_site, realloc(old.address, size), size);
}

SITE(thread_memalign);
static KEEP struct block thread_memalign(size_t size)
{
    void *address;
    if (posix_memalign(&address, 64, size))
        fatal("out of memory");
    return took(&thread_memalign_site, address, size);
}

static uint32_t next(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static struct block allocate(uint32_t *state)
{
    size_t size = sizeof(struct block) + next(state) % 2000;
    switch (next(state) % 4) {
    case 0:
        return thread_malloc(size);
    case 1:
        return thread_calloc(size);
    case 2:
        return thread_memalign(size);
    default:
        return thread_realloc(thread_malloc(size), sizeof(struct block) + next(state) % 4000);
    }
}

static void *churn(void *argument)
{
    uint32_t state = 0x9e3779b9u * (1 + (uint32_t)(uintptr_t)argument);
    for (int step = 0; step < STEPS; step++) {
        struct block block = allocate(&state);
        if (!block.address)
            fatal("out of memory");
        *(struct block *)block.address = block;
        struct block *other = atomic_exchange(&slots[next(&state) % SLOTS], block.address);
        if (other)
            give(*other);
    }
    return NULL;
}

static void run(const char *argument)
{
    (void)argument;
    pthread_t threads[THREADS];
    for (uintptr_t index = 0; index < THREADS; index++)
        if (pthread_create(&threads[index], NULL, churn, (void *)index))
            fatal("no thread");
    for (int index = 0; index < THREADS; index++)
        pthread_join(threads[index], NULL);
}

/* Frees from the main thread what the others left. */
static void drop(const char *argument)
{
    (void)argument;
    for (int index = 0; index < SLOTS; index++) {
        struct block *block = atomic_exchange(&slots[index], NULL);
        if (block)
            give(*block);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "drop", drop }, { 0 } });
    return 0;
}
