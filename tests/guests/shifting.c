/*
 * Maps and unmaps memory all the time, as a malloc of large blocks does: wherever there is room at one moment, something is at the
 * next.
 */
#include "ledger.h"

#include <pthread.h>
#include <sys/mman.h>

static void *shift(void *argument)
{
    (void)argument;
    /* Another one is mapped before the last is gone, so that it cannot be where that was. */
    char *last = NULL;
    size_t bytes = 1 << 20;
    for (;;) {
        char *next = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (next == MAP_FAILED)
            fatal("nothing more can be mapped");
        next[bytes - 1] = 1;
        if (last && munmap(last, bytes))
            fatal("what is mapped cannot be unmapped");
        last = next;
    }
}

SITE(a_block);
static KEEP struct block a_block(size_t size)
{
    return took(&a_block_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t size = 1; size <= 1000; size++)
        give(a_block(size));
}

int main(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, shift, NULL))
        fatal("no thread");
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
