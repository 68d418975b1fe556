/*
 * Many live blocks of mixed sizes, most of them small: an operation frees one, any of them, and allocates another.
 * For one thread. How many live blocks there are is LIVE, where that is defined.
 */
#include "at_command.h"

#ifndef LIVE
#define LIVE 50000
#endif

enum { OPERATIONS = 64 };

static void *blocks[LIVE];
static uint64_t state = 88172645463325252;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Six tenths up to 64 bytes, three up to 512, nearly one up to 4 KiB, one hundredth up to 64 KiB. */
static size_t size(void)
{
    uint64_t kind = next() % 100, most = kind < 60 ? 64 : kind < 90 ? 512 : kind < 99 ? 4096 : 65536;
    return 1 + next() % most;
}

static void prepare(void)
{
    for (int index = 0; index < LIVE; index++)
        blocks[index] = malloc(size());
}

static long operate(void)
{
    for (int index = 0; index < OPERATIONS; index++) {
        uint64_t which = next() % LIVE;
        free(blocks[which]);
        blocks[which] = malloc(size());
    }
    return OPERATIONS;
}
