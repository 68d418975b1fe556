/* An operation is a malloc of 64 bytes and its free. */
#include "at_command.h"

static void prepare(void)
{
}

static long operate(void)
{
    enum { PAIRS = 64 };
    for (int index = 0; index < PAIRS; index++) {
        /* Volatile, for the compiler would leave both calls out. */
        void *volatile block = malloc(64);
        free(block);
    }
    return PAIRS;
}
