/*
 * Starts processes in every way; a child allocates, and frees what it inherited. None of that is the parent's.
 */
#include "ledger.h"

#include <spawn.h>
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

static void await(pid_t child)
{
    int status;
    if (child < 0)
        fatal("no process");
    if (waitpid(child, &status, 0) != child || status != 0)
        fatal("the child did not end well");
}

static const char ends_well[] = "/bin/true";

/* The child has the parent's memory until it replaces its program, and leaves it as it found it. */
static void run_vfork(const char *argument)
{
    (void)argument;
    for (int round = 0; round < BLOCKS; round++) {
        kept[0] = parent_malloc(100);
        pid_t child = vfork();
        if (child == 0) {
            void *volatile block = malloc(5000);
            free(block);
            execl(ends_well, ends_well, (char *)NULL);
            _exit(1);
        }
        await(child);
        give(kept[0]);
    }
}

static void run_spawn(const char *argument)
{
    extern char **environ;
    char name[] = "true";
    char *const arguments[] = { name, NULL };
    (void)argument;
    for (int round = 0; round < BLOCKS; round++) {
        kept[0] = parent_malloc(200);
        pid_t child;
        if (posix_spawn(&child, ends_well, NULL, NULL, arguments, environ))
            fatal("no process");
        await(child);
        if (system("exec true"))
            fatal("the shell did not end well");
        give(kept[0]);
    }
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++)
        kept[index] = parent_malloc(64);
    pid_t child = fork();
    if (child == 0)
        live_as_child();
    await(child);
    for (int index = 0; index < BLOCKS; index += 4)
        give(kept[index]);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { "vfork", run_vfork }, { "spawn", run_spawn }, { 0 } });
    return 0;
}
