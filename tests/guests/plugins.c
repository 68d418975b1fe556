/*
 * Allocates from a library that dlopen brought, closes it, and from another that lies where the first one did.
 *
 * The libraries are one source compiled twice: the same size, other functions at the same addresses. `second` answers
 * `same-address yes` or `no`, for where the loader puts a library is its own affair.
 */
#include "ledger.h"

#include <dlfcn.h>
#include <link.h>

enum { ROUNDS = 50 };

typedef void *plugin_function(size_t size);

/* The functions are the libraries'; the ledger outlives them here. */
SITE(first_malloc);
CHAIN(first_malloc, "first_malloc first_work use main");
SITE(second_malloc);
CHAIN(second_malloc, "second_malloc second_work use main");

static struct block kept[3];

static void *open_plugin(const char *file)
{
    void *plugin = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!plugin)
        fatal(dlerror());
    return plugin;
}

static ElfW(Addr) base_of(void *plugin)
{
    struct link_map *map;
    if (dlinfo(plugin, RTLD_DI_LINKMAP, &map))
        fatal(dlerror());
    return map->l_addr;
}

static KEEP void use(void *plugin, const char *name, struct site *site, struct block *last)
{
    void *symbol = dlsym(plugin, name);
    if (!symbol)
        fatal(dlerror());
    plugin_function *work = (plugin_function *)symbol;
    for (size_t round = 0; round < ROUNDS; round++) {
        size_t size = 64 + round;
        give(*last);
        *last = took(site, work(size), size);
    }
}

static ElfW(Addr) first_base;
static void *plugin;

/* The first library stays open until `second`, so that a recorder has the time to look at it. */
static KEEP void first(const char *argument)
{
    (void)argument;
    plugin = open_plugin("libplugin-first.so");
    first_base = base_of(plugin);
    use(plugin, "first_work", &first_malloc_site, &kept[0]);
}

/* Once more, by what is mapped, whatever lies at the file's name by now. */
static KEEP void again(const char *argument)
{
    (void)argument;
    use(plugin, "first_work", &first_malloc_site, &kept[2]);
}

static KEEP void second(const char *argument)
{
    (void)argument;
    dlclose(plugin);
    if (dlopen("libplugin-first.so", RTLD_NOW | RTLD_NOLOAD))
        fatal("the first library stays");

    plugin = open_plugin("libplugin-second.so");
    say("same-address %s", base_of(plugin) == first_base ? "yes" : "no");
    use(plugin, "second_work", &second_malloc_site, &kept[1]);
}

static void run(const char *argument)
{
    first(argument);
    second(argument);
    dlclose(plugin);
}

int main(void)
{
    serve((const struct command[]){
        { "first", first }, { "again", again }, { "second", second }, { "run", run }, { 0 } });
    return 0;
}
