/*
 * A library of unannounced.c, compiled as `first` and as `second`: frames of other sizes with the same return addresses.
 * It needs nothing from outside, since nobody relocates it; its entry point is what is called.
 */
#include <stddef.h>

#define KEEP __attribute__((noipa))

/* Sizes whose instructions have the same length. */
#ifdef SECOND
enum { LOCALS = 75 };
#define LIBRARY(function) second_##function
#else
enum { LOCALS = 35 };
#define LIBRARY(function) first_##function
#endif

typedef void *allocator(size_t size);

static KEEP void touch(volatile char *locals, void *address)
{
    locals[0] = address != NULL;
}

static KEEP void *LIBRARY(malloc)(size_t size, allocator *allocate)
{
    volatile char locals[LOCALS * 8];
    void *address = allocate(size);
    touch(locals, address);
    return address;
}

void *LIBRARY(work)(size_t size, allocator *allocate)
{
    volatile char locals[LOCALS * 16];
    void *address = LIBRARY(malloc)(size, allocate);
    touch(locals, address);
    return address;
}
