/*
 * A library of plugins.c, compiled as `first` and as `second`: the same layout of files and mappings, and frames
 * of other sizes at the same addresses, so that what was learned of one is wrong for the other.
 */
#include <stdlib.h>

#define KEEP __attribute__((noipa))

#ifdef SECOND
enum { LOCALS = 75 };
#define PLUGIN(function) second_##function
#else
enum { LOCALS = 11 };
#define PLUGIN(function) first_##function
#endif

static KEEP void touch(volatile char *locals, void *address)
{
    locals[0] = address != NULL;
}

static KEEP void *PLUGIN(malloc)(size_t size)
{
    volatile char locals[LOCALS * 8];
    void *address = malloc(size);
    touch(locals, address);
    return address;
}

void *PLUGIN(work)(size_t size)
{
    volatile char locals[LOCALS * 16];
    void *address = PLUGIN(malloc)(size);
    touch(locals, address);
    return address;
}
