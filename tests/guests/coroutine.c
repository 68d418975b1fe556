/*
 * Allocates on the stack of a coroutine (makecontext), which lies below the thread's own or above it, and between
 * its turns on the thread's.
 */
#include "ledger.h"

#include <sys/mman.h>
#include <ucontext.h>

enum { ROUNDS = 50, STACK = 1 << 16 };

static ucontext_t outside, inside;
static struct block kept[2];

SITE(inside_malloc);
CHAIN(inside_malloc, "inside_malloc inside_work coroutine");
static KEEP struct block inside_malloc(size_t size)
{
    return took(&inside_malloc_site, malloc(size), size);
}

SITE(outside_malloc);
CHAIN(outside_malloc, "outside_malloc run main");
static KEEP struct block outside_malloc(size_t size)
{
    return took(&outside_malloc_site, malloc(size), size);
}

static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

static KEEP void inside_work(size_t round)
{
    keep(0, inside_malloc(100 + round));
    if (swapcontext(&inside, &outside))
        fatal("no way out");
}

static KEEP void coroutine(void)
{
    for (size_t round = 0; round < ROUNDS; round++)
        inside_work(round);
}

static void run(const char *argument)
{
    (void)argument;
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED || getcontext(&inside))
        fatal("no stack");
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = STACK;
    inside.uc_link = &outside;
    makecontext(&inside, coroutine, 0);
    /* Once more than it gives way: it then ends. */
    for (size_t round = 0; round <= ROUNDS; round++) {
        if (swapcontext(&outside, &inside))
            fatal("no way in");
        keep(1, outside_malloc(200 + round));
    }
    munmap(stack, STACK);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
