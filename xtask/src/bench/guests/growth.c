/* A buffer that grows by half from 64 bytes to a MiB, and is freed: an operation is one realloc of it. */
#include "at_command.h"

static void prepare(void)
{
}

static long operate(void)
{
    enum { MOST = 1 << 20 };
    char *buffer = NULL;
    long operations = 0;
    for (size_t size = 64; size < MOST; size += size / 2) {
        buffer = realloc(buffer, size);
        if (!buffer)
            abort();
        /* Nobody grows a buffer without writing to it; the compiler would leave the calls out. */
        *(volatile char *)(buffer + size - 1) = 1;
        operations++;
    }
    free(buffer);
    return operations;
}
