/*
 * Threads that end with their blocks still allocated: by returning, and by the bare system call that skips
 * the C library's clean-up. The main thread frees half of what they leave.
 */
#include "ledger.h"

#include <pthread.h>
#include <sys/syscall.h>

enum { THREADS = 16, BLOCKS = 100 };

static struct block left[THREADS][BLOCKS];

SITE(dying_malloc);
static KEEP struct block dying_malloc(size_t size)
{
    return took(&dying_malloc_site, malloc(size), size);
}

static void *live_and_die(void *argument)
{
    size_t index = (size_t)argument;
    for (size_t block = 0; block < BLOCKS; block++)
        left[index][block] = dying_malloc(32 + block);
    if (index % 2)
        syscall(SYS_exit, 0);
    return NULL;
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t index = 0; index < THREADS; index++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, live_and_die, (void *)index))
            fatal("no thread");
        pthread_join(thread, NULL);
        for (size_t block = 0; block < BLOCKS; block += 2)
            give(left[index][block]);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
