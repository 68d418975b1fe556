/*
 * Threads that wait in system calls of each kind, that count, or that start and end all the time.
 *
 * `block` starts the former and is done when each is about to wait; `waiting` prints how many the kernel shows to wait, `end`
 * wakes them and prints what each call returned. `count N` starts N threads, `counted` is done when each has counted on;
 * `rest N` starts N threads that wait.
 * `churn` starts threads that start threads. `signals` prints how many signals have come. `copies` has a thread go round in a
 * loop and prints where that is; a copy of it is on the next page. `handle` and `handle aside` have that thread handle a signal
 * until `leave`. `deep` waits for a byte with much on its stack. `filter` has all system calls filtered. `vfork` has a thread wait for a child where nothing
 * interrupts it, until `join`. `spin` prints where a word is and computes until it is not 0.
 */
#include "ledger.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

enum { KINDS = 5, COUNTERS = 512, CHURNS = 4, SIGNALS = 65, NAP_SECONDS = 10 };

/* The ledger has to have a line, and nothing is allocated here. */
SITE(nothing);

static const char *const names[KINDS] = { "nanosleep", "futex", "epoll_wait", "read", "accept" };
static const int numbers[KINDS] = { SYS_clock_nanosleep, SYS_futex, SYS_epoll_wait, SYS_read, SYS_accept };
static pthread_t waiters[KINDS];
static atomic_int tids[KINDS];
static long results[KINDS];
static int errors[KINDS];
static atomic_int ended;
static int futex_word, pipes[2], watched[2], epoll, listener;
static struct sockaddr_un address;
static socklen_t address_length = sizeof address;
static struct timespec slept;

static void *wait_in(void *argument)
{
    long kind = (long)argument, result = -1;
    struct timespec nap = { NAP_SECONDS, 0 }, begin, end;
    struct epoll_event event;
    char byte;
    tids[kind] = (int)syscall(SYS_gettid);
    errno = 0;
    switch (kind) {
    case 0:
        clock_gettime(CLOCK_MONOTONIC, &begin);
        result = nanosleep(&nap, NULL);
        clock_gettime(CLOCK_MONOTONIC, &end);
        slept.tv_sec = end.tv_sec - begin.tv_sec;
        break;
    case 1:
        result = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
        break;
    case 2:
        result = epoll_wait(epoll, &event, 1, -1);
        break;
    case 3:
        result = read(pipes[0], &byte, 1);
        break;
    case 4:
        result = accept(listener, NULL, NULL);
        break;
    default:
        fatal("no such call");
    }
    results[kind] = result;
    errors[kind] = result < 0 ? errno : 0;
    ended++;
    return NULL;
}

static void block(const char *argument)
{
    (void)argument;
    struct epoll_event event = { .events = EPOLLIN };
    address.sun_family = AF_UNIX;
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    epoll = epoll_create1(0);
    /* An address that the kernel chooses, which is in no file system. */
    if (listener < 0 || epoll < 0 || bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) ||
        getsockname(listener, (struct sockaddr *)&address, &address_length) || listen(listener, 1) ||
        pipe(pipes) || pipe(watched) || epoll_ctl(epoll, EPOLL_CTL_ADD, watched[0], &event))
        fatal("nothing to wait for");
    for (long kind = 0; kind < KINDS; kind++)
        pthread_create(&waiters[kind], NULL, wait_in, (void *)kind);
}

/* The number of the system call that a thread waits in; -1 while it runs. */
static int call_of(int tid)
{
    char path[64], text[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int file = open(path, O_RDONLY);
    if (file < 0)
        return -1;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 && text[0] != 'r' ? atoi(text) : -1;
}

/* SYS_restart_syscall is what goes on with a nap that was interrupted. */
static void waiting(const char *argument)
{
    (void)argument;
    int count = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        int call = tids[kind] ? call_of(tids[kind]) : -1;
        count += call == numbers[kind] || (kind == 0 && call == SYS_restart_syscall);
    }
    say("waiting %d", count);
    say("ended %d", (int)ended);
}

static void end(const char *argument)
{
    (void)argument;
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    pthread_join(waiters[0], NULL);
    if (ended != 1)
        fatal("a call has returned early");
    futex_word = 1;
    syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    if (write(pipes[1], "x", 1) != 1 || write(watched[1], "x", 1) != 1 ||
        connect(client, (struct sockaddr *)&address, address_length))
        fatal("nothing to wake by");
    for (int kind = 1; kind < KINDS; kind++)
        pthread_join(waiters[kind], NULL);
    for (int kind = 0; kind < KINDS; kind++)
        say("%s %ld %d", names[kind], kind == 4 && results[kind] >= 0 ? 0 : results[kind], errors[kind]);
    say("slept %ld", (long)(slept.tv_sec >= NAP_SECONDS));
}

static struct {
    atomic_ulong value;
} __attribute__((aligned(64))) counters[COUNTERS];
static int counting;

static void *count_on(void *argument)
{
    atomic_ulong *counter = argument;
    for (;;)
        atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
    return NULL;
}

/* Waits until every thread has counted since this began. */
static void counted(const char *argument)
{
    (void)argument;
    unsigned long before[COUNTERS];
    for (int index = 0; index < counting; index++)
        before[index] = counters[index].value;
    for (int index = 0; index < counting; index++)
        while (counters[index].value == before[index])
            sched_yield();
}

static void count(const char *argument)
{
    int wanted = atoi(argument);
    pthread_t thread;
    for (counting = 0; counting < wanted && counting < COUNTERS; counting++)
        if (pthread_create(&thread, NULL, count_on, &counters[counting].value))
            fatal("no thread");
    counted("");
}

static void *rest_for_ever(void *argument)
{
    for (;;)
        syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return argument;
}

static void rest(const char *argument)
{
    pthread_t thread;
    for (int wanted = atoi(argument); wanted > 0; wanted--)
        if (pthread_create(&thread, NULL, rest_for_ever, NULL))
            fatal("no thread");
}

static volatile unsigned long spun, spin_ends;

static void spin(const char *argument)
{
    (void)argument;
    say("word %lu", (unsigned long)(uintptr_t)&spin_ends);
    while (!spin_ends)
        spun++;
}

static atomic_ulong births;

static void *be_born(void *argument)
{
    births++;
    return argument;
}

static void *bear(void *argument)
{
    pthread_t thread;
    for (;;) {
        if (pthread_create(&thread, NULL, be_born, NULL))
            fatal("no thread");
        pthread_join(thread, NULL);
    }
    return argument;
}

static void churned(const char *argument)
{
    (void)argument;
    unsigned long before = births;
    while (births < before + 10)
        sched_yield();
}

static void churn(const char *argument)
{
    pthread_t thread;
    for (int index = 0; index < CHURNS; index++)
        pthread_create(&thread, NULL, bear, NULL);
    churned(argument);
}

static atomic_int came[SIGNALS];

static void take(int signal)
{
    came[signal]++;
}

static void signals(const char *argument)
{
    (void)argument;
    for (int signal = 1; signal < SIGNALS; signal++)
        if (came[signal])
            say("came %d %d", signal, (int)came[signal]);
}

/* Without end, of instructions that take their time, so that a thread is found at each of them. */
__attribute__((naked, noinline, used)) static void round_and_round(void)
{
    __asm__("1: pause\n pause\n pause\n pause\n pause\n pause\n pause\n pause\n lock incq (%rdi)\n jmp 1b\n");
}

enum { ROUND_BYTES = 22, PAGE = 4096 };

static pthread_t rounds;
static char aside[1 << 16];

static void *within(void *copy)
{
    stack_t stack = { .ss_sp = aside, .ss_size = sizeof aside };
    if (sigaltstack(&stack, NULL))
        fatal("no stack for signals");
    void (*code)(atomic_ulong *) = (void (*)(atomic_ulong *))(uintptr_t)copy;
    code(&counters[0].value);
    return NULL;
}

static void copies(const char *argument)
{
    (void)argument;
    char *code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        fatal("no memory");
    for (int copy = 0; copy < 2; copy++)
        memcpy(code + copy * PAGE, (void *)(uintptr_t)round_and_round, ROUND_BYTES);
    pthread_create(&rounds, NULL, within, code);
    counting = 1;
    counted("");
    say("copies %lu", (unsigned long)(uintptr_t)code);
}

static atomic_int is_handling;

static void stay(int signal)
{
    for (is_handling = signal; is_handling;)
        sched_yield();
}

static void handle(const char *argument)
{
    if (pthread_kill(rounds, strcmp(argument, "aside") ? SIGUSR2 : SIGALRM))
        fatal("no thread");
    while (!is_handling)
        sched_yield();
}

static void leave(const char *argument)
{
    is_handling = 0;
    counted(argument);
}

static KEEP void deep(const char *argument)
{
    volatile char large[2 << 20];
    char byte;
    large[0] = 1;
    say("deep %d", large[0]);
    if (read(STDIN_FILENO, &byte, 1) != 1)
        fatal(argument);
    large[1] = byte;
}

static void filter(const char *argument)
{
    (void)argument;
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { 1, &allow };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        fatal("no filter");
}

static int child_pipe[2];
static pthread_t parent;

static void *wait_for_child(void *argument)
{
    char byte;
    pid_t child = vfork();
    if (child < 0)
        fatal("no child");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(read(child_pipe[0], &byte, 1) == 1 ? 0 : 1);
    }
    return argument;
}

static void start_child(const char *argument)
{
    (void)argument;
    if (pipe(child_pipe))
        fatal("no pipe");
    pthread_create(&parent, NULL, wait_for_child, NULL);
}

static void join(const char *argument)
{
    (void)argument;
    if (write(child_pipe[1], "x", 1) != 1)
        fatal("no child");
    pthread_join(parent, NULL);
}

int main(void)
{
    static const struct command commands[] = {
        { "block", block },     { "waiting", waiting }, { "end", end },         { "count", count },
        { "counted", counted }, { "churn", churn },     { "churned", churned }, { "signals", signals },
        { "copies", copies },       { "filter", filter },   { "vfork", start_child }, { "join", join },
        { "spin", spin },       { "handle", handle },   { "leave", leave },     { "deep", deep },       { "rest", rest },
        { NULL, NULL },
    };
    struct sigaction action = { .sa_handler = take };
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGCONT, &action, NULL);
    sigaction(SIGRTMIN + 3, &action, NULL);
    action.sa_handler = stay;
    sigaction(SIGUSR2, &action, NULL);
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGALRM, &action, NULL);
    serve(commands);
    return 0;
}
