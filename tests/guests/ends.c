/*
 * Allocates, then ends in one of the ways in which processes end: `end return|_exit|abort|kill`.
 */
#include "ledger.h"

#include <signal.h>

enum { BLOCKS = 500 };

static struct block kept[BLOCKS];

SITE(last_malloc);
static KEEP struct block last_malloc(size_t size)
{
    return took(&last_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        kept[index] = last_malloc(16 + (size_t)index);
        if (index % 5 == 0)
            give(kept[index]);
    }
}

static void end(const char *how)
{
    if (!strcmp(how, "return"))
        exit(0);
    if (!strcmp(how, "_exit"))
        _exit(0);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "kill"))
        kill(getpid(), SIGKILL);
    fatal("no such end");
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "end", end }, { 0 } });
    return 0;
}
