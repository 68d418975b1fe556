/*
 * Allocates the same again and again, at sites that each have a size of their own, from several threads, and keeps about half of it
 * until the next time.
 *
 * `run` allocates blocks from nothing to 100 KiB, `large` from 1 MiB to 1 GiB, none of which is written to.
 */
#include "ledger.h"

#include <pthread.h>

enum { THREADS = 4, ROUND = 16, KEPT = 4096 };

static struct block kept[THREADS][KEPT];
static size_t keeping[THREADS];

/* Every other block stays until the next time. */
static void hold(int thread, struct block block, int number)
{
    if (number % 2 || keeping[thread] == KEPT)
        give(block);
    else
        kept[thread][keeping[thread]++] = block;
}

static void drop(int thread)
{
    while (keeping[thread])
        give(kept[thread][--keeping[thread]]);
}

#define OF_SIZE(name, size)                                                                                  \
    SITE(name);                                                                                              \
    static KEEP struct block name(void)                                                                      \
    {                                                                                                        \
        return took(&name##_site, malloc(size), size);                                                       \
    }

OF_SIZE(of_0, 0)
OF_SIZE(of_1, 1)
OF_SIZE(of_24, 24)
OF_SIZE(of_600, 600)
OF_SIZE(of_5000, 5000)
OF_SIZE(of_100000, 100000)
OF_SIZE(of_1m, 1 << 20)
OF_SIZE(of_17m, 17 << 20)
OF_SIZE(of_1g, 1 << 30)

SITE(by_calloc);
static KEEP struct block by_calloc(void)
{
    return took(&by_calloc_site, calloc(30, 50), 1500);
}

SITE(by_posix_memalign);
static KEEP struct block by_posix_memalign(void)
{
    void *address = NULL;
    if (posix_memalign(&address, 256, 2000))
        fatal("posix_memalign failed");
    return took(&by_posix_memalign_site, address, 2000);
}

/* What realloc does with nothing is for another function to do. */
SITE(by_realloc_of_nothing);
static KEEP struct block by_realloc_of_nothing(void)
{
    return took(&by_realloc_of_nothing_site, realloc(NULL, 700), 700);
}

SITE(by_realloc);
static KEEP struct block grow(struct block block, size_t size)
{
    gave(block);
    return took(&by_realloc_site, realloc(block.address, size), size);
}

static KEEP struct block by_realloc(void)
{
    struct block block = { 0 };
    for (size_t size = 100; size < 10000; size *= 3)
        block = grow(block, size);
    return block;
}

typedef struct block allocate(void);

static allocate *const small[] = { of_0, of_1, of_24, of_600, of_5000, of_100000, by_calloc, by_posix_memalign,
                                   by_realloc_of_nothing, by_realloc };
static allocate *const large[] = { of_1m, of_17m, of_1g };

/* How often each of them is called in a round, so that each allocates enough for a round to have samples of it. */
static const int small_times[] = { 40, 40, 40, 10, 4, 1, 10, 10, 10, 2 };
static const int large_times[] = { 8, 2, 1 };

static void times(int thread, allocate *const *functions, const int *times, size_t count)
{
    drop(thread);
    for (int round = 0; round < ROUND; round++)
        for (size_t function = 0; function < count; function++)
            for (int time = 0; time < times[function]; time++)
                hold(thread, functions[function](), time + round);
}

static void *run_small(void *thread)
{
    times((int)(intptr_t)thread, small, small_times, sizeof small / sizeof *small);
    return NULL;
}

static void run(const char *argument)
{
    (void)argument;
    pthread_t threads[THREADS];
    for (intptr_t thread = 0; thread < THREADS; thread++)
        if (pthread_create(&threads[thread], NULL, run_small, (void *)thread))
            fatal("no thread");
    for (int thread = 0; thread < THREADS; thread++)
        pthread_join(threads[thread], NULL);
}

/* By one thread, which does not hold more than the machine may have addresses for. */
static void run_large(const char *argument)
{
    (void)argument;
    times(0, large, large_times, sizeof large / sizeof *large);
    drop(0);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "large", run_large }, { 0 } });
    return 0;
}
