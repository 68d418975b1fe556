/*
 * Threads that check whether they are left as they are: numbers in all registers, the signals that they block, their stack for
 * signals, how they round; and calls that wait, which must not return. What is not as it was ends the guest, but for epoll_wait,
 * which fails when a process is stopped and continued: `interrupted` prints how often.
 *
 * `crowd` starts threads of both kinds. `verify` is done when each of the former has checked itself again, and when a signal has
 * come. `alone` checks in the thread that answers commands, up to the next command, and `naps` has that thread sleep and wait for
 * it with a limit of time; both print their name first.
 */
#include "ledger.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

enum { COMPUTING = 3, WAITING = 6, NAP_MILLISECONDS = 20, LONG_SECONDS = 100000, ALL = COMPUTING + 1 };

/* The ledger has to have a line, and nothing is allocated here. */
SITE(nothing);

/* What is in the registers: 16 of 32 bytes, and all general ones but the stack pointer. */
struct registers {
    uint64_t wide[16][4];
    uint64_t general[15];
};

struct held {
    struct registers want, got;
    uint64_t carry;
};

#define WIDE(move, kind, number, at) move " " at "(%rdi), %" kind #number "\n"
#define GENERAL(name, index) "mov 512+8*" #index "(%rdi), %" name "\n"
#define KEEP_WIDE(move, kind, number, at) move " %" kind #number ", 632+" at "(%rax)\n"
#define KEEP_GENERAL(name, index) "mov %" name ", 632+512+8*" #index "(%rax)\n"
#define EACH_WIDE(what, move, kind) \
    what(move, kind, 0, "0") what(move, kind, 1, "32") what(move, kind, 2, "64") what(move, kind, 3, "96") \
    what(move, kind, 4, "128") what(move, kind, 5, "160") what(move, kind, 6, "192") \
    what(move, kind, 7, "224") what(move, kind, 8, "256") what(move, kind, 9, "288") \
    what(move, kind, 10, "320") what(move, kind, 11, "352") what(move, kind, 12, "384") \
    what(move, kind, 13, "416") what(move, kind, 14, "448") what(move, kind, 15, "480")
#define EACH_GENERAL(what) \
    what("rbx", 1) what("rcx", 2) what("rdx", 3) what("rsi", 4) what("rbp", 5) what("r8", 6) what("r9", 7) \
    what("r10", 8) what("r11", 9) what("r12", 10) what("r13", 11) what("r14", 12) what("r15", 13)

/* Takes what is wanted into the registers and the carry, lets time pass that is counted on the stack, and notes what is there. */
#define HOLD(name, move, kind, clear) \
    void name(struct held *held); \
    __asm__(".text\n.type " #name ", @function\n" #name ":\n" \
            "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %rdi\n push $500\n" \
            EACH_WIDE(WIDE, move, kind) EACH_GENERAL(GENERAL) "mov 512(%rdi), %rax\n" \
            "mov 512+8*14(%rdi), %rdi\n stc\n" \
            "1: pause\n decq (%rsp)\n jnz 1b\n" \
            "push %rax\n mov 16(%rsp), %rax\n setc 2*632(%rax)\n" \
            EACH_WIDE(KEEP_WIDE, move, kind) EACH_GENERAL(KEEP_GENERAL) "mov %rdi, 632+512+8*14(%rax)\n" \
            "pop %rbx\n mov %rbx, 632+512(%rax)\n" clear \
            "pop %rdi\n pop %rdi\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n" \
            ".size " #name ", . - " #name "\n")
HOLD(hold_avx, "vmovdqu", "ymm", "vzeroupper\n");
HOLD(hold_sse, "movdqu", "xmm", "");

_Static_assert(sizeof(struct registers) == 632 && offsetof(struct registers, general) == 512, "as in HOLD");

static atomic_ulong rounds[ALL], signals;

/* What is a thread's own. */
struct own {
    long index;
    sigset_t blocked;
    stack_t stack;
    unsigned short rounding;
    unsigned mxcsr;
    char memory[1 << 16];
};
static struct own owns[ALL];

static void take(int signal)
{
    signals += signal == SIGALRM;
}

/* Makes a thread different from what a thread is at first. */
static void prepare(struct own *own, int takes_alarms)
{
    sigset_t blocked;
    own->stack = (stack_t){ .ss_sp = own->memory, .ss_size = sizeof own->memory };
    own->rounding = 0x0c7f;
    own->mxcsr = 0x7f80;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN + 5 + (int)own->index);
    if (!takes_alarms)
        sigaddset(&blocked, SIGALRM);
    if (pthread_sigmask(SIG_SETMASK, &blocked, NULL) || pthread_sigmask(SIG_SETMASK, NULL, &own->blocked) ||
        sigaltstack(&own->stack, NULL))
        fatal("no signals");
    __asm__ volatile("fldcw %0\n ldmxcsr %1\n" ::"m"(own->rounding), "m"(own->mxcsr));
}

static void check(struct own *own)
{
    struct held held;
    sigset_t blocked;
    stack_t stack;
    unsigned short rounding;
    unsigned mxcsr;
    uint64_t number = rounds[own->index] + 1;
    uint64_t *words = (uint64_t *)&held.want;
    for (size_t index = 0; index < sizeof held.want / sizeof *words; index++)
        words[index] = number = number * 6364136223846793005u + 1442695040888963407u;
    held.got = held.want;
    held.carry = 0;
    if (__builtin_cpu_supports("avx"))
        hold_avx(&held);
    else
        hold_sse(&held);
    if (memcmp(&held.want, &held.got, sizeof held.want) || held.carry != 1)
        fatal("a register has changed");
    __asm__ volatile("fnstcw %0\n stmxcsr %1\n" : "=m"(rounding), "=m"(mxcsr));
    if (rounding != own->rounding || (mxcsr & ~0x3fu) != own->mxcsr)
        fatal("it rounds otherwise");
    if (pthread_sigmask(SIG_SETMASK, NULL, &blocked) || memcmp(&blocked, &own->blocked, 8))
        fatal("other signals are blocked");
    if (sigaltstack(NULL, &stack) || stack.ss_sp != own->stack.ss_sp || stack.ss_flags)
        fatal("it has another stack for signals");
    rounds[own->index]++;
}

static void *compute(void *argument)
{
    struct own *own = argument;
    prepare(own, 1);
    for (;;)
        check(own);
    return NULL;
}

static atomic_long interrupted;
static const char *const calls[WAITING] = { "nanosleep returned", "futex returned", "epoll_wait returned",
                                            "read returned",      "poll returned",  "sigsuspend returned" };

static void *wait_in(void *argument)
{
    static int word;
    struct timespec nap = { LONG_SECONDS, 0 };
    struct pollfd none = { .fd = -1 };
    struct epoll_event event;
    int ends[2], epoll = epoll_create1(0);
    sigset_t blocked;
    sigfillset(&blocked);
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    if (pipe(ends) || epoll < 0)
        fatal("nothing to wait for");
    switch ((long)argument) {
    case 0:
        nanosleep(&nap, NULL);
        break;
    case 1:
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
        break;
    case 2:
        while (epoll_wait(epoll, &event, 1, -1) < 0 && errno == EINTR)
            interrupted++;
        break;
    case 3:
        if (read(ends[0], &event, 1))
            break;
        break;
    case 4:
        poll(&none, 1, LONG_SECONDS * 1000);
        break;
    default:
        sigsuspend(&blocked);
    }
    fatal(calls[(long)argument]);
    return NULL;
}

static int is_crowded;

/* How often epoll_wait has failed, as it does when a process is stopped and continued. */
static void print_interrupted(const char *argument)
{
    (void)argument;
    say("interrupted %ld", (long)interrupted);
}

static void crowd(const char *argument)
{
    (void)argument;
    pthread_t thread;
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    /* It answers by calls that a signal would end. */
    pthread_sigmask(SIG_BLOCK, &alarms, NULL);
    is_crowded = 1;
    for (long index = 0; index < WAITING; index++)
        pthread_create(&thread, NULL, wait_in, (void *)index);
    for (long index = 0; index < COMPUTING; index++)
        pthread_create(&thread, NULL, compute, &owns[owns[index].index = index]);
}

static void verify(const char *argument)
{
    (void)argument;
    unsigned long before[COMPUTING], came = signals;
    for (int index = 0; index < COMPUTING; index++)
        before[index] = rounds[index];
    for (int index = 0; index < COMPUTING && is_crowded; index++)
        while (rounds[index] < before[index] + 2)
            usleep(100);
    while (signals == came)
        if (is_crowded)
            usleep(100);
        else
            check(&owns[COMPUTING]);
}

static struct pollfd commands_come = { .fd = STDIN_FILENO, .events = POLLIN };

static void alone(const char *argument)
{
    (void)argument;
    say("alone");
    do
        check(&owns[COMPUTING]);
    while (!poll(&commands_come, 1, 0));
}

static void naps(const char *argument)
{
    (void)argument;
    struct own *own = &owns[COMPUTING];
    struct timespec nap = { 0, NAP_MILLISECONDS * 1000000L }, begin, end;
    int there = 0;
    own->index = COMPUTING;
    prepare(own, 0);
    say("naps");
    while (!there) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        if (nanosleep(&nap, NULL))
            fatal("a nap has been interrupted");
        there = poll(&commands_come, 1, NAP_MILLISECONDS);
        clock_gettime(CLOCK_MONOTONIC, &end);
        if (there < 0)
            fatal("poll has been interrupted");
        long took = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
        if (took < (there ? 1 : 2) * NAP_MILLISECONDS - 1)
            fatal("a nap was too short");
        check(own);
    }
    prepare(own, 1);
}

int main(void)
{
    static const struct command commands[] = {
        { "crowd", crowd }, { "verify", verify }, { "alone", alone }, { "naps", naps },
        { "interrupted", print_interrupted }, { NULL, NULL },
    };
    struct sigaction action = { .sa_handler = take, .sa_flags = SA_RESTART };
    struct itimerval often = { { 0, 1000 }, { 0, 1000 } };
    sigaction(SIGALRM, &action, NULL);
    owns[COMPUTING].index = COMPUTING;
    prepare(&owns[COMPUTING], 1);
    setitimer(ITIMER_REAL, &often, NULL);
    serve(commands);
    return 0;
}
