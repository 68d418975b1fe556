/*
 * Replaces its program, by itself or another one, as often as it is told to. What runs first allocates by one function, and
 * what runs then by another; a block is allocated before main, and some are freed.
 */
#include "ledger.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

enum { BLOCKS = 1000, THREADS = 4, LOADS = 1000 };

/* How the second program is called. */
static const char second[] = "second";

static int is_second;
static struct block kept[BLOCKS];

SITE(first_malloc);
static KEEP struct block first_malloc(size_t size)
{
    return took(&first_malloc_site, malloc(size), size);
}

SITE(second_malloc);
static KEEP struct block second_malloc(size_t size)
{
    return took(&second_malloc_site, malloc(size), size);
}

SITE(early_malloc);
static KEEP struct block early_malloc(size_t size)
{
    return took(&early_malloc_site, malloc(size), size);
}

static struct block early;

__attribute__((constructor)) static void begin(int count, char **arguments)
{
    is_second = count > 0 && !strcmp(arguments[0], second);
    if (is_second)
        early = early_malloc(321);
}

/* Every third block is freed. */
static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        size_t size = (size_t)index % 500 + 1;
        kept[index] = is_second ? second_malloc(size) : first_malloc(size);
        if (index % 3 == 0)
            give(kept[index]);
    }
}

/* Has the loader announce a great many changes. */
static void load(const char *argument)
{
    for (int index = 0; index < LOADS; index++) {
        void *library = dlopen(argument, RTLD_NOW);
        if (!library)
            fatal(dlerror());
        dlclose(library);
    }
}

static void replace(const char *argument)
{
    execl(*argument ? argument : "/proc/self/exe", second, (char *)NULL);
    fatal("cannot replace the program");
}

/* What the ledger has must not change any more: these are nobody's. */
static void *toil(void *running)
{
    atomic_fetch_add((atomic_int *)running, 1);
    for (;;)
        free(malloc(100));
    return NULL;
}

static void *replace_from_here(void *program)
{
    replace(program);
    return NULL;
}

static char program[128];

/* Replaces the program from a thread of its own, in the midst of others that allocate. */
static void replace_among_threads(const char *argument)
{
    static atomic_int running;
    pthread_t thread;
    strncpy(program, argument, sizeof program - 1);
    for (int index = 0; index < THREADS; index++)
        if (pthread_create(&thread, NULL, toil, &running))
            fatal("no thread");
    while (atomic_load(&running) < THREADS)
        ;
    if (pthread_create(&thread, NULL, replace_from_here, program))
        fatal("no thread");
    pthread_join(thread, NULL);
}

int main(void)
{
    serve((const struct command[]){
        { "run", run },
        { "load", load },
        { "exec", replace },
        { "exec-thread", replace_among_threads },
        { 0 },
    });
    return 0;
}
