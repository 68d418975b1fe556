/*
 * Loads an allocator when told to, and from then on has two: what the first gives is not the second's to free.
 */
#include "ledger.h"

#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>

enum { BLOCKS = 100, PAGE = 4096 };

static void *library;
static void *(*loaded_malloc)(size_t);
static void *(*loaded_realloc)(void *, size_t);
static void (*loaded_free)(void *);

SITE(call_own);
static KEEP struct block call_own(size_t size)
{
    return took(&call_own_site, malloc(size), size);
}

SITE(call_loaded);
static KEEP struct block call_loaded(size_t size)
{
    return took(&call_loaded_site, loaded_malloc(size), size);
}

SITE(call_loaded_realloc);
static KEEP struct block call_loaded_realloc(struct block old, size_t size)
{
    gave(old);
    return took(&call_loaded_realloc_site, loaded_realloc(old.address, size), size);
}

static void give_loaded(struct block block)
{
    gave(block);
    loaded_free(block.address);
}

static void load(const char *argument)
{
    library = dlopen(argument, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fatal(dlerror());
    loaded_malloc = (void *(*)(size_t))dlsym(library, "mi_malloc");
    loaded_realloc = (void *(*)(void *, size_t))dlsym(library, "mi_realloc");
    loaded_free = (void (*)(void *))dlsym(library, "mi_free");
    if (!loaded_malloc || !loaded_realloc || !loaded_free)
        fatal("the library has no allocator");
}

static void unload(const char *argument)
{
    (void)argument;
    void *page = (void *)((uintptr_t)loaded_malloc & -(uintptr_t)PAGE);
    if (dlclose(library))
        fatal(dlerror());
    loaded_malloc = NULL;
    /* What is loaded next must lie elsewhere, or its blocks may have the addresses of those that are in use still. A library that stays
       is in the way of this, as it should be. */
    mmap(page, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t size = 1; size <= BLOCKS; size++) {
        give(call_own(size));
        if (!loaded_malloc)
            continue;
        give_loaded(call_loaded(2 * size));
        call_loaded_realloc(call_loaded(3 * size), 4 * size);
    }
    call_own(1000);
}

int main(void)
{
    serve((const struct command[]){ { "load", load }, { "unload", unload }, { "run", run }, { 0 } });
    return 0;
}
