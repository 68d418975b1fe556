/*
 * The first thread ends with pthread_exit, others go on: the process lives, but /proc/PID shows a zombie.
 *
 * `leave` ends the first thread and is done when the kernel says so; `run` allocates in another. `load` loads an allocator, and
 * `run-loaded` allocates by that.
 */
#include "ledger.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

enum { BLOCKS = 200 };

static struct block kept[BLOCKS];
static pthread_mutex_t stay = PTHREAD_MUTEX_INITIALIZER;

SITE(follower_malloc);
static KEEP struct block follower_malloc(size_t size)
{
    return took(&follower_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        kept[index] = follower_malloc(32 + (size_t)index);
        if (index % 4 == 0)
            give(kept[index]);
    }
}

static void *(*loaded_malloc)(size_t);

SITE(call_loaded);
static KEEP struct block call_loaded(size_t size)
{
    return took(&call_loaded_site, loaded_malloc(size), size);
}

static void load(const char *argument)
{
    void *library = dlopen(argument, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fatal(dlerror());
    loaded_malloc = (void *(*)(size_t))dlsym(library, "mi_malloc");
    if (!loaded_malloc)
        fatal("the library has no allocator");
}

static void run_loaded(const char *argument)
{
    (void)argument;
    for (size_t size = 1; size <= BLOCKS; size++)
        call_loaded(size);
}

/* The first thread's state: one letter, after the command name in parentheses. */
static char leader_state(void)
{
    char stat[256] = { 0 };
    int file = open("/proc/self/stat", O_RDONLY);
    if (file < 0 || read(file, stat, sizeof stat - 1) < 0)
        fatal("cannot read /proc/self/stat");
    close(file);
    char *name_end = strrchr(stat, ')');
    return name_end ? name_end[2] : '?';
}

static void leave(const char *argument)
{
    (void)argument;
    pthread_mutex_unlock(&stay);
    while (leader_state() != 'Z')
        sched_yield();
}

static void *follow(void *argument)
{
    /* Locked here, so that the thread that unlocks it is its owner. */
    pthread_mutex_lock(&stay);
    *(atomic_int *)argument = 1;
    serve((const struct command[]){ { "leave", leave }, { "load", load }, { "run", run }, { "run-loaded", run_loaded }, { 0 } });
    exit(0);
}

int main(void)
{
    static atomic_int following;
    pthread_t thread;
    if (pthread_create(&thread, NULL, follow, &following))
        fatal("no thread");
    while (!following)
        sched_yield();
    pthread_mutex_lock(&stay);
    pthread_exit(NULL);
}
