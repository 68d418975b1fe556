/*
 * Allocates before main: in its own constructor and, before that, in one of the library that it links.
 *
 * It is started by the profiler and so takes no commands: `constructor FILE ARG...` writes to FILE what it
 * was started with (`arg`, `env HEAPTAP_GUEST`, `uid`) and its ledger, then returns.
 */
#include "ledger.h"

#include <fcntl.h>

void library_ledger(void);

enum { BLOCKS = 50 };

static struct block kept[2 * BLOCKS];

SITE(program_constructor_malloc);
static KEEP struct block program_constructor_malloc(size_t size)
{
    return took(&program_constructor_malloc_site, malloc(size), size);
}

SITE(main_malloc);
static KEEP struct block main_malloc(size_t size)
{
    return took(&main_malloc_site, malloc(size), size);
}

__attribute__((constructor)) static void construct(void)
{
    for (int index = 0; index < BLOCKS; index++)
        kept[index] = program_constructor_malloc(100);
}

int main(int count, char **arguments)
{
    if (count < 2)
        fatal("usage: constructor FILE [ARG...]");
    for (int index = 0; index < BLOCKS; index++) {
        kept[BLOCKS + index] = main_malloc(200);
        /* One of the constructor's, which must be known. */
        if (index % 2)
            give(kept[index]);
    }
    int file = open(arguments[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || dup2(file, STDOUT_FILENO) < 0)
        fatal("cannot write the file");
    for (int index = 2; index < count; index++)
        say("arg %s", arguments[index]);
    const char *value = getenv("HEAPTAP_GUEST");
    say("env HEAPTAP_GUEST %s", value ? value : "(unset)");
    say("uid %d", (int)getuid());
    print_ledger();
    library_ledger();
    say("end");
    return 0;
}
