/*
 * A busy program: four threads allocate, check what they wrote, and free, until told to stop.
 *
 * `start` and `stop` do as they say; `advance N` is done when N more rounds have been made, however long that
 * takes; `iterations` prints the rounds so far; `tid` prints a thread that is not the first. A block whose
 * contents changed ends the guest with an error: a profiler must not be seen from inside.
 */
#include "ledger.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

enum { THREADS = 4, HELD = 64 };

static pthread_t threads[THREADS];
static atomic_int running, tid;
static atomic_long iterations;

SITE(churn_malloc);
static KEEP struct block churn_malloc(size_t size)
{
    return took(&churn_malloc_site, malloc(size), size);
}

SITE(churn_realloc);
static KEEP struct block churn_realloc(struct block old, size_t size)
{
    gave(old);
    return took(&churn_realloc_site, realloc(old.address, size), size);
}

static void check(struct block block, unsigned char mark)
{
    for (size_t at = 0; at < block.size; at++)
        if (((unsigned char *)block.address)[at] != mark)
            fatal("a block's contents changed");
}

static void *churn(void *argument)
{
    unsigned char mark = (unsigned char)(uintptr_t)argument;
    struct block held[HELD] = { 0 };
    tid = (int)syscall(SYS_gettid);
    for (size_t round = 0; running; round++) {
        struct block *slot = &held[round % HELD];
        check(*slot, mark);
        give(*slot);
        *slot = churn_malloc(16 + round % 200);
        if (round % 3 == 0)
            *slot = churn_realloc(*slot, 300 + round % 100);
        if (!slot->address)
            fatal("out of memory");
        memset(slot->address, mark, slot->size);
        iterations++;
    }
    for (int index = 0; index < HELD; index++) {
        check(held[index], mark);
        if (index % 2)
            give(held[index]);
    }
    return NULL;
}

static void start(const char *argument)
{
    (void)argument;
    running = 1;
    for (uintptr_t index = 0; index < THREADS; index++)
        if (pthread_create(&threads[index], NULL, churn, (void *)(index + 1)))
            fatal("no thread");
    while (!tid)
        sched_yield();
}

static void stop(const char *argument)
{
    (void)argument;
    running = 0;
    for (int index = 0; index < THREADS; index++)
        pthread_join(threads[index], NULL);
    tid = 0;
}

static void advance(const char *argument)
{
    long until = iterations + atol(argument);
    while (iterations < until)
        sched_yield();
}

static void print_iterations(const char *argument)
{
    (void)argument;
    say("iterations %ld", iterations);
}

static void print_tid(const char *argument)
{
    (void)argument;
    say("tid %d", tid);
}

int main(void)
{
    serve((const struct command[]){ { "start", start }, { "stop", stop }, { "advance", advance },
                                    { "iterations", print_iterations }, { "tid", print_tid }, { 0 } });
    return 0;
}
