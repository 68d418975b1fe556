/*
 * Forks; the child allocates, and frees what it inherited. None of that is the parent's.
 */
#include "ledger.h"

#include <sys/wait.h>

enum { BLOCKS = 100 };

static struct block kept[BLOCKS];

SITE(parent_malloc);
static KEEP struct block parent_malloc(size_t size)
{
    return took(&parent_malloc_site, malloc(size), size);
}

SITE(child_malloc);
static KEEP struct block child_malloc(size_t size)
{
    return took(&child_malloc_site, malloc(size), size);
}

static void live_as_child(void)
{
    for (int index = 0; index < BLOCKS; index++) {
        give(kept[index]);
        child_malloc(1000);
    }
    _exit(0);
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++)
        kept[index] = parent_malloc(64);
    pid_t child = fork();
    if (child < 0)
        fatal("no process");
    if (child == 0)
        live_as_child();
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        fatal("the child did not end well");
    for (int index = 0; index < BLOCKS; index += 4)
        give(kept[index]);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
