/*
 * What the Go program has C do: allocate, and call back into Go. Nothing here keeps a frame pointer but who needs one.
 */
#include "../ledger.h"
#include "_cgo_export.h"

#include <alloca.h>
#include <pthread.h>

enum { BLOCKS = 1 << 20 };

static struct block kept[BLOCKS];
static size_t keeping;

/* Every third block is freed. */
static void keep(struct block block)
{
    kept[keeping] = block;
    if (keeping % 3 == 0)
        give(block);
    keeping++;
}

SITE(c_malloc);
KEEP void c_malloc(size_t size)
{
    keep(took(&c_malloc_site, malloc(size), size));
}

SITE(nested_malloc);
KEEP void nested_malloc(size_t size)
{
    keep(took(&nested_malloc_site, malloc(size), size));
}

/* Its caller is found by rbp, which Go has to give back. */
KEEP void call_back(size_t size)
{
    volatile char *room = alloca(size);
    room[0] = 1;
    calledBack(size);
    room[0] = 2;
}

static void *thread_entry(void *size)
{
    call_back((size_t)size);
    return NULL;
}

KEEP void call_back_from_thread(size_t size)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_entry, (void *)size))
        fatal("no thread");
    pthread_join(thread, NULL);
}

static pthread_barrier_t all;

/* How many threads are to meet. */
void expect(int threads)
{
    if (pthread_barrier_init(&all, NULL, (unsigned)threads))
        fatal("no barrier");
}

/* Waits until as many threads are here: none of them can do two things at once. */
void meet(void)
{
    pthread_barrier_wait(&all);
}

void say_ready(void)
{
    say("ready");
}

void say_ledger(void)
{
    print_ledger();
    say("end");
}

void say_chains(void)
{
    say("chain c_malloc main.allocate main.handle main.main runtime.main");
    say("chain nested_malloc main.nested crosscall2 calledBack call_back");
}

void say_done(void)
{
    say("done");
}
