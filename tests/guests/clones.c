/*
 * Allocates in a pthread, in a thread made by a bare clone without a frame of the C library's above it, and after a
 * vfork whose child has borrowed the stack.
 */
#include "ledger.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { ROUNDS = 20, STACK = 1 << 17 };

static struct block kept[3];

SITE(pthread_malloc);
CHAIN(pthread_malloc, "pthread_malloc pthread_entry");
static KEEP struct block pthread_malloc(size_t size)
{
    return took(&pthread_malloc_site, malloc(size), size);
}

SITE(clone_malloc);
CHAIN(clone_malloc, "clone_malloc clone_work clone_entry");
static KEEP struct block clone_malloc(size_t size)
{
    return took(&clone_malloc_site, malloc(size), size);
}

SITE(vfork_malloc);
CHAIN(vfork_malloc, "vfork_malloc after_vfork run main");
static KEEP struct block vfork_malloc(size_t size)
{
    return took(&vfork_malloc_site, malloc(size), size);
}

static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

static KEEP void *pthread_entry(void *argument)
{
    keep(0, pthread_malloc((size_t)(uintptr_t)argument));
    return NULL;
}

static KEEP void clone_work(size_t size)
{
    keep(1, clone_malloc(size));
}

static KEEP int clone_entry(void *argument)
{
    clone_work((size_t)(uintptr_t)argument);
    return 0;
}

/* Shares even the thread-local storage of its maker, which therefore does nothing until it is gone. */
static void run_clone(char *stack, size_t size)
{
    static _Atomic pid_t alive;
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                CLONE_CHILD_CLEARTID;
    alive = 1;
    if (clone(clone_entry, stack + STACK, flags, (void *)(uintptr_t)size, NULL, NULL, &alive) < 0)
        fatal("no clone");
    /* Only a wait for the 1 sleeps; the kernel clears it at the thread's end. */
    while (alive)
        syscall(SYS_futex, &alive, FUTEX_WAIT, 1, NULL, NULL, 0);
}

static KEEP void after_vfork(size_t size)
{
    pid_t child = vfork();
    if (child == 0)
        _exit(0);
    if (child < 0 || waitpid(child, NULL, 0) != child)
        fatal("no vfork");
    keep(2, vfork_malloc(size));
}

static void run(const char *argument)
{
    (void)argument;
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        fatal("no stack");
    for (uintptr_t round = 0; round < ROUNDS; round++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pthread_entry, (void *)(100 + round)))
            fatal("no thread");
        pthread_join(thread, NULL);
        run_clone(stack, 200 + round);
        after_vfork(300 + round);
    }
    munmap(stack, STACK);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
