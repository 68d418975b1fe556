/* The library of lazy.c. What follows each call keeps it from being a jump, which would leave the function out. */
#include <stdlib.h>

static volatile int calls;

void *library_one(size_t size)
{
    void *address = malloc(size);
    calls++;
    return address;
}

void *library_two(size_t size)
{
    void *address = malloc(size);
    calls++;
    return address;
}

void *library_calloc(size_t size)
{
    void *address = calloc(1, size);
    calls++;
    return address;
}
