/*
 * Checks itself while it allocates by two allocators, the C library's and one that signal handlers may call (libslots.c): what it has
 * written into a block has to be there when it frees it.
 *
 * `start N` has N threads do so, `signals` sends each a signal every 100 µs, whose handler does the same; `advance N` waits for N more
 * rounds, and `stop` for their end. `run` does what is in the ledger. `fork` makes a child, which goes on by itself when it is told to:
 * `more`, until `join`. `leave HOW` has a thread leave a call of the allocator otherwise than by returning from it: `exit`, `cancel`,
 * `longjmp`. `vfork` and `spawn` start programs, `share` a process that has this one's memory until `unshare`. `filter` allows no
 * system call but what this needs.
 */
#include "ledger.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { THREADS = 8, HELD = 64, BLOCKS = 300, MORE = 3000, SLOTS_HELD = 77, PERIOD_NS = 100000, STACK = 1 << 16 };

void *mi_malloc(size_t size);
void *mi_realloc(void *old, size_t size);
void mi_free(void *block);
extern void (*volatile slots_hook)(void);

SITE(call_malloc);
static KEEP struct block call_malloc(size_t size)
{
    return took(&call_malloc_site, malloc(size), size);
}

SITE(call_slots);
static KEEP struct block call_slots(size_t size)
{
    return took(&call_slots_site, mi_malloc(size), size);
}

static void give_slots(struct block block)
{
    gave(block);
    mi_free(block.address);
}

/* A block whose bytes are all the same. */
struct filled {
    unsigned char *bytes;
    size_t size;
    unsigned char byte;
    int is_slot;
};

static unsigned draw(unsigned *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void check(struct filled block)
{
    for (size_t at = 0; at < block.size; at++)
        if (block.bytes[at] != block.byte)
            fatal("a block has not what was written");
}

static struct filled fill(unsigned *seed, int is_slot)
{
    struct filled block = { NULL, 0, (unsigned char)draw(seed), is_slot };
    block.size = is_slot ? draw(seed) % 200 + 1 : draw(seed) % 3000 + 1;
    if (block.size == SLOTS_HELD)
        block.size++;
    int zeroed = !is_slot && draw(seed) % 4 == 0;
    block.bytes = is_slot ? mi_malloc(block.size) : zeroed ? calloc(1, block.size) : malloc(block.size);
    if (!block.bytes)
        fatal("no block");
    for (size_t at = 0; zeroed && at < block.size; at++)
        if (block.bytes[at])
            fatal("a block of calloc is not zero");
    memset(block.bytes, block.byte, block.size);
    return block;
}

static void empty(struct filled *block)
{
    check(*block);
    block->is_slot ? mi_free(block->bytes) : free(block->bytes);
    block->bytes = NULL;
}

/* To at least half of what it was, and checks that this half has stayed. */
static void resize(struct filled *block, unsigned *seed)
{
    size_t size = block->size / 2 + 1 + draw(seed) % (block->size / 2 + 1);
    if (size > 200 && block->is_slot)
        size = 200;
    unsigned char *bytes = block->is_slot ? mi_realloc(block->bytes, size) : realloc(block->bytes, size);
    if (!bytes)
        fatal("no other block");
    size_t left = size < block->size ? size : block->size;
    block->bytes = bytes;
    check((struct filled){ bytes, left, block->byte, 0 });
    memset(bytes, block->byte, size);
    block->size = size;
}

static atomic_long rounds, handled;

static void churn_once(struct filled *held, unsigned *seed)
{
    struct filled *block = &held[draw(seed) % HELD];
    if (!block->bytes)
        *block = fill(seed, (int)draw(seed) % 2);
    else if (draw(seed) % 3 == 0)
        resize(block, seed);
    else
        empty(block);
    atomic_fetch_add(&rounds, 1);
}

static void drop(struct filled *held)
{
    for (int index = 0; index < HELD; index++)
        if (held[index].bytes)
            empty(&held[index]);
}

/* Allocates by what can be interrupted anywhere. */
static void on_signal(int number)
{
    int kept = errno;
    unsigned seed = (unsigned)number + (unsigned)atomic_fetch_add(&handled, 1);
    struct filled block = fill(&seed, 1);
    resize(&block, &seed);
    empty(&block);
    errno = kept;
}

static pthread_t threads[THREADS];
static int running;
static atomic_int is_over, with_signals;

static void *churn(void *number)
{
    static _Thread_local struct filled held[HELD];
    unsigned seed = (unsigned)(uintptr_t)number;
    timer_t timer;
    if (with_signals) {
        struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
        event._sigev_un._tid = gettid();
        struct itimerspec every = { { 0, PERIOD_NS }, { 0, PERIOD_NS } };
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL))
            fatal("no timer");
    }
    while (!is_over)
        churn_once(held, &seed);
    if (with_signals)
        timer_delete(timer);
    drop(held);
    return NULL;
}

static void start(const char *argument)
{
    is_over = 0;
    for (running = 0; running < atoi(argument) && running < THREADS; running++)
        if (pthread_create(&threads[running], NULL, churn, (void *)(uintptr_t)running))
            fatal("no thread");
}

static void signals(const char *argument)
{
    (void)argument;
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    if (sigaction(SIGUSR1, &action, NULL))
        fatal("no handler");
    with_signals = 1;
}

static void advance(const char *argument)
{
    long until = rounds + atol(argument), signals_until = handled + (with_signals ? 100 : 0);
    while (rounds < until || handled < signals_until)
        sched_yield();
}

static void stop(const char *argument)
{
    (void)argument;
    is_over = 1;
    while (running)
        pthread_join(threads[--running], NULL);
}

/* What is in the ledger: a third is kept, or none where `all` are to be freed. */
static void run(const char *argument)
{
    for (size_t index = 0; index < BLOCKS; index++) {
        struct block block = call_malloc(index * 13 + 1), slot = call_slots(index % 70 + 1);
        if (index % 3 || *argument) {
            give(block);
            give_slots(slot);
        }
    }
}

static int to_child = -1, from_child = -1;
static pid_t child;

static void live_as_child(int commands, int answers)
{
    static struct filled held[HELD];
    unsigned seed = 7;
    char byte;
    do {
        for (int round = 0; round < MORE; round++)
            churn_once(held, &seed);
        if (write(answers, "x", 1) != 1)
            _exit(2);
    } while (read(commands, &byte, 1) == 1);
    drop(held);
    _exit(0);
}

static void await_child(void)
{
    char byte;
    if (read(from_child, &byte, 1) != 1)
        fatal("the child is not well");
}

static void make_child(const char *argument)
{
    int commands[2], answers[2];
    (void)argument;
    if (pipe2(commands, O_CLOEXEC) || pipe2(answers, O_CLOEXEC))
        fatal("no pipe");
    child = fork();
    if (child < 0)
        fatal("no child");
    if (!child) {
        close(commands[1]);
        live_as_child(commands[0], answers[1]);
    }
    close(commands[0]);
    close(answers[1]);
    to_child = commands[1];
    from_child = answers[0];
    await_child();
    say("pid %d", child);
}

static void more(const char *argument)
{
    (void)argument;
    if (write(to_child, "x", 1) != 1)
        fatal("the child has gone");
    await_child();
}

static void expect_well(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid || status)
        fatal("a child did not end well");
}

static void join(const char *argument)
{
    (void)argument;
    close(to_child);
    close(from_child);
    expect_well(child);
}

static const char ends_well[] = "/bin/true";

static void run_vfork(const char *argument)
{
    for (volatile int round = 0; round < atoi(argument); round++) {
        pid_t pid = vfork();
        if (!pid) {
            /* In the parent's memory. */
            void *volatile block = mi_malloc(50);
            mi_free(block);
            execl(ends_well, ends_well, (char *)NULL);
            _exit(1);
        }
        expect_well(pid);
    }
}

static void run_spawn(const char *argument)
{
    extern char **environ;
    char name[] = "true";
    char *const arguments[] = { name, NULL };
    for (int round = 0; round < atoi(argument); round++) {
        pid_t pid;
        if (posix_spawn(&pid, ends_well, NULL, NULL, arguments, environ))
            fatal("no process");
        expect_well(pid);
    }
}

/* Has this process's memory, and goes on allocating by what needs no thread-local storage. */
static int live_in_common(void *argument)
{
    (void)argument;
    unsigned seed = 3;
    while (!is_over) {
        struct filled block = fill(&seed, 1);
        empty(&block);
        atomic_fetch_add(&rounds, 1);
    }
    return 0;
}

static void share(const char *argument)
{
    (void)argument;
    static char stack[STACK];
    is_over = 0;
    child = clone(live_in_common, stack + STACK, CLONE_VM | SIGCHLD, NULL);
    if (child < 0)
        fatal("no clone");
    for (long until = rounds + 100; rounds < until;)
        sched_yield();
    say("pid %d", child);
}

static void unshare_memory(const char *argument)
{
    (void)argument;
    is_over = 1;
    expect_well(child);
}

static sigjmp_buf back;
static atomic_int is_held;

static void wait_to_be_cancelled(void)
{
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    is_held = 1;
    for (;;)
        ;
}

static void end_thread(void)
{
    pthread_exit(NULL);
}

static void on_jump(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

static void raise_to_jump(void)
{
    raise(SIGUSR2);
}

static void *leave_by_hook(void *argument)
{
    (void)argument;
    call_slots(SLOTS_HELD);
    return NULL;
}

static void leave(const char *how)
{
    pthread_t thread;
    if (!strcmp(how, "longjmp")) {
        struct sigaction action = { .sa_handler = on_jump };
        if (sigaction(SIGUSR2, &action, NULL))
            fatal("no handler");
        slots_hook = raise_to_jump;
        if (!sigsetjmp(back, 1))
            call_slots(SLOTS_HELD);
        slots_hook = NULL;
        return;
    }
    is_held = 0;
    slots_hook = strcmp(how, "exit") ? wait_to_be_cancelled : end_thread;
    if (pthread_create(&thread, NULL, leave_by_hook, NULL))
        fatal("no thread");
    if (slots_hook == wait_to_be_cancelled) {
        while (!is_held)
            sched_yield();
        pthread_cancel(thread);
    }
    pthread_join(thread, NULL);
    slots_hook = NULL;
}

#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void filter(const char *argument)
{
    (void)argument;
    struct sock_filter lines[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read), ALLOW(write), ALLOW(exit_group), ALLOW(exit), ALLOW(futex), ALLOW(brk), ALLOW(sched_yield),
        ALLOW(rt_sigreturn), ALLOW(getrandom), ALLOW(restart_syscall), ALLOW(mprotect), ALLOW(madvise),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = { sizeof lines / sizeof *lines, lines };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program))
        fatal("no filter");
}

int main(void)
{
    serve((const struct command[]){
        { "start", start },
        { "signals", signals },
        { "advance", advance },
        { "stop", stop },
        { "run", run },
        { "fork", make_child },
        { "more", more },
        { "join", join },
        { "vfork", run_vfork },
        { "spawn", run_spawn },
        { "share", share },
        { "unshare", unshare_memory },
        { "leave", leave },
        { "filter", filter },
        { 0 },
    });
    return 0;
}
