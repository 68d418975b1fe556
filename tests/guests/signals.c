/*
 * Allocates in signal handlers: on the stack that was interrupted, on one of its own (sigaltstack), and where the
 * interrupted function had not yet run its first instruction, so that the address before it is another function's.
 */
#include "ledger.h"

#include <signal.h>
#include <ucontext.h>

enum { ROUNDS = 100 };

static struct block kept[3];

SITE(raised_malloc);
CHAIN(raised_malloc, "raised_malloc on_raised raise_here run main");
static KEEP struct block raised_malloc(size_t size)
{
    return took(&raised_malloc_site, malloc(size), size);
}

SITE(aside_malloc);
CHAIN(aside_malloc, "aside_malloc on_aside raise_aside run main");
static KEEP struct block aside_malloc(size_t size)
{
    return took(&aside_malloc_site, malloc(size), size);
}

SITE(fault_malloc);
CHAIN(fault_malloc, "fault_malloc on_fault traps_at_once call_trap run main");
static KEEP struct block fault_malloc(size_t size)
{
    return took(&fault_malloc_site, malloc(size), size);
}

/* Frees the one of last time, so that one is in use at the end. */
static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

static KEEP void on_raised(int number)
{
    keep(0, raised_malloc(100 + (size_t)number));
}

static KEEP void on_aside(int number)
{
    keep(1, aside_malloc(200 + (size_t)number));
}

static KEEP void on_fault(int number, siginfo_t *info, void *context)
{
    (void)info;
    ucontext_t *interrupted = context;
    keep(2, fault_malloc(300 + (size_t)number));
    /* Behind the instruction. */
    interrupted->uc_mcontext.gregs[REG_RIP] += 2;
}

void traps_at_once(void);
__asm__(".text\n"
        ".globl traps_at_once\n"
        ".type traps_at_once, @function\n"
        "traps_at_once:\n"
        ".cfi_startproc\n"
        "    ud2\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size traps_at_once, . - traps_at_once\n");

/* The stores after the calls keep these from being jumps. */
static volatile int rounds;

static KEEP void raise_here(void)
{
    raise(SIGUSR1);
    rounds++;
}

static KEEP void raise_aside(void)
{
    raise(SIGUSR2);
    rounds++;
}

static KEEP void call_trap(void)
{
    traps_at_once();
    rounds++;
}

static void run(const char *argument)
{
    (void)argument;
    for (int round = 0; round < ROUNDS; round++) {
        raise_here();
        raise_aside();
        call_trap();
    }
}

static void handle(int number, struct sigaction action)
{
    if (sigaction(number, &action, NULL))
        fatal("no signal handler");
}

int main(void)
{
    static char aside[1 << 16];
    stack_t stack = { .ss_sp = aside, .ss_size = sizeof aside };
    if (sigaltstack(&stack, NULL))
        fatal("no stack for signals");
    handle(SIGUSR1, (struct sigaction){ .sa_handler = on_raised });
    handle(SIGUSR2, (struct sigaction){ .sa_handler = on_aside, .sa_flags = SA_ONSTACK });
    handle(SIGILL, (struct sigaction){ .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO });
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
