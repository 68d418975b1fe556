/*
 * Leaves malloc by siglongjmp, and by the end of the thread, then allocates at every depth around that call.
 *
 * How: a block that fills the start of a page is freed into the thread's cache, and the page is made
 * inaccessible. The next malloc of that size faults inside malloc, where it reads the cache's link from the
 * block, before it has changed anything. The handler gives the page back and jumps out.
 */
#include "ledger.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, SIZE = 1000, ROUNDS = 20, DEPTH = 20 };

static sigjmp_buf landing;
static void *trap;
static volatile sig_atomic_t trapped;
static volatile sig_atomic_t end_thread;

static struct block kept[64 * ROUNDS];
static size_t keeping;

static void keep(struct block block)
{
    if (!block.address)
        fatal("out of memory");
    if (keeping == sizeof kept / sizeof *kept)
        fatal("no room for more blocks");
    if (keeping % 4 == 0)
        give(block);
    else
        kept[keeping] = block;
    keeping++;
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    if (!trap || (uintptr_t)info->si_addr / PAGE != (uintptr_t)trap / PAGE)
        fatal("a fault that was not provoked");
    mprotect(trap, PAGE, PROT_READ | PROT_WRITE);
    trap = NULL;
    trapped++;
    if (end_thread)
        syscall(SYS_exit, 0);
    siglongjmp(landing, 1);
}

SITE(lay_trap);
static KEEP void lay_trap(void)
{
    struct block block = took(&lay_trap_site, aligned_alloc(PAGE, SIZE), SIZE);
    trap = block.address;
    give(block);
    mprotect(trap, PAGE, PROT_NONE);
}

/* Counts nothing unless malloc comes back, which it must not. */
SITE(malloc_abandoned);
static KEEP void malloc_abandoned(void)
{
    if (took(&malloc_abandoned_site, malloc(SIZE), SIZE).address)
        fatal("malloc was not abandoned");
}

/* Does nothing but abandon a call, in a frame that is gone afterwards. */
static KEEP void abandon(void)
{
    int before = trapped;
    lay_trap();
    if (sigsetjmp(landing, 1) == 0)
        malloc_abandoned();
    if (trapped != before + 1)
        fatal("malloc did not fault");
}

SITE(malloc_after);
static KEEP struct block malloc_after(size_t size)
{
    return took(&malloc_after_site, malloc(size), size);
}

SITE(realloc_after);
static KEEP struct block realloc_after(struct block old, size_t size)
{
    gave(old);
    return took(&realloc_after_site, realloc(old.address, size), size);
}

SITE(calloc_after);
static KEEP struct block calloc_after(size_t size)
{
    return took(&calloc_after_site, calloc(1, size), size);
}

/* Calls `what` with at least DEPTH times 256 bytes more stack in use than here. */
static KEEP int deeper(int depth, void (*what)(void))
{
    volatile char room[256];
    room[0] = (char)depth;
    if (depth == 0)
        what();
    else
        deeper(depth - 1, what);
    return room[0];
}

static KEEP void allocate_here(void)
{
    keep(malloc_after(SIZE));
    keep(realloc_after(malloc_after(100), 5000));
    keep(calloc_after(300));
}

/* Empties the cache: seven blocks of a size are what it holds, and a full one would not take the trap. */
static void make_room(void)
{
    for (int index = 0; index < 7; index++)
        keep(malloc_after(SIZE));
}

static KEEP void abandon_then_allocate_at_the_same_depth(void)
{
    int before = trapped;
    lay_trap();
    if (sigsetjmp(landing, 1) == 0)
        malloc_abandoned();
    if (trapped != before + 1)
        fatal("malloc did not fault");
    allocate_here();
}

static KEEP void *abandon_for_good(void *argument)
{
    lay_trap();
    malloc_abandoned();
    return argument;
}

static void end_thread_inside_malloc(void)
{
    pthread_t thread;
    int before = trapped;
    end_thread = 1;
    if (pthread_create(&thread, NULL, abandon_for_good, NULL))
        fatal("no thread");
    pthread_join(thread, NULL);
    end_thread = 0;
    if (trapped != before + 1)
        fatal("the thread's malloc did not fault");
}

static void run(const char *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS; round++) {
        make_room();
        abandon_then_allocate_at_the_same_depth();
        abandon();
        deeper(DEPTH, allocate_here);
        allocate_here();
        deeper(DEPTH, abandon);
        allocate_here();
        deeper(DEPTH / 2, allocate_here);
        abandon();
        abandon();
        deeper(DEPTH, abandon_then_allocate_at_the_same_depth);
        end_thread_inside_malloc();
        allocate_here();
    }
    say("abandoned %d", (int)trapped);
}

int main(void)
{
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
    sigaction(SIGSEGV, &action, NULL);
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
