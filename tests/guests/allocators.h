/*
 * What the guests share that are built against one allocator after the other: blocks from before main, threads, and
 * two ways to be driven.
 *
 * Without an argument such a guest answers commands, as ledger.h says. With one, `GUEST FILE`, it does `run` once,
 * writes its ledger to FILE and ends, for a profiler that starts it.
 *
 * Besides `run` and `drop` there are two commands for a profiler that attaches: `forget` takes the blocks that the
 * constructor allocated off the ledger, for nobody has seen them come, and `unknown` prints how many of these were freed
 * since.
 */
#ifndef ALLOCATORS_H
#define ALLOCATORS_H

#include "ledger.h"

#include <fcntl.h>
#include <pthread.h>

enum { EARLY = 60, EARLY_A_RUN = 7, WORKERS = 4, CAPACITY = 4096 };

/* A thread's blocks; whoever comes later may free them. */
struct worker {
    void *heap;
    size_t kept;
    struct block blocks[CAPACITY];
};

static struct worker workers[WORKERS];

/* How a block is freed. The ledger is changed before, for the block's address may be another's right after. */
typedef void (*release_function)(struct block block);

/* Frees one of three blocks and keeps the others, so that in-use is not the same as allocated. */
static void settle(struct worker *worker, int round, struct block block, release_function release)
{
    if (!block.address)
        fatal("out of memory");
    if (round % 3 == 0) {
        release(block);
    } else {
        if (worker->kept == CAPACITY)
            fatal("no room for more blocks");
        worker->blocks[worker->kept++] = block;
    }
}

static pthread_barrier_t begin, end;

static void (*work_of_a_run)(struct worker *worker);

/* Works in every run. It does not end: glibc then frees what it kept for the thread's next malloc, for a second time. */
static void *serve_runs(void *worker)
{
    for (;;) {
        pthread_barrier_wait(&begin);
        work_of_a_run((struct worker *)worker);
        pthread_barrier_wait(&end);
    }
    return NULL;
}

/* Does the work on the main thread and on others at once, which the first call starts. */
static void run_workers(void (*work)(struct worker *worker))
{
    pthread_t thread;
    if (!work_of_a_run) {
        if (pthread_barrier_init(&begin, NULL, WORKERS) || pthread_barrier_init(&end, NULL, WORKERS))
            fatal("cannot make a barrier");
        for (int index = 1; index < WORKERS; index++)
            if (pthread_create(&thread, NULL, serve_runs, &workers[index]))
                fatal("cannot start a thread");
    }
    work_of_a_run = work;
    pthread_barrier_wait(&begin);
    work(&workers[0]);
    pthread_barrier_wait(&end);
}

/* The command: frees what was kept. */
static void drop(const char *argument)
{
    (void)argument;
    for (int index = 0; index < WORKERS; index++) {
        struct worker *worker = &workers[index];
        while (worker->kept)
            give(worker->blocks[--worker->kept]);
    }
}

/* In no ledger: what was allocated before anybody looked. */
static struct site forgotten;

static struct block early[EARLY];
static size_t early_freed;

SITE(early_malloc);
static KEEP struct block early_malloc(size_t size)
{
    return took(&early_malloc_site, malloc(size), size);
}

/* Allocates before main and keeps three of four. */
__attribute__((constructor)) static void allocate_early(void)
{
    for (size_t index = 0; index < EARLY; index++) {
        struct block block = early_malloc(100 + index);
        if (!block.address)
            fatal("out of memory in the constructor");
        if (index % 4 == 0)
            give(block);
        else
            early[index] = block;
    }
}

/* Frees a few of the constructor's blocks, as long as there are any. */
static void free_early(void)
{
    size_t freed = 0;
    for (size_t index = 0; index < EARLY && freed < EARLY_A_RUN; index++) {
        if (early[index].address) {
            freed++;
            give(early[index]);
            early[index].address = NULL;
        }
    }
    early_freed += freed;
}

/* The command: see above. */
static void forget(const char *argument)
{
    (void)argument;
    for (size_t index = 0; index < EARLY; index++)
        early[index].site = &forgotten;
    early_malloc_site.alloc_objects = early_malloc_site.alloc_bytes = 0;
    early_malloc_site.freed_objects = early_malloc_site.freed_bytes = 0;
    early_freed = 0;
}

/* The command: see above. */
static void print_unknown(const char *argument)
{
    (void)argument;
    say("unknown %ld", (long)early_freed);
}

/* Answers commands, or runs once and reports. */
static int serve_or_report(int count, char **arguments, const struct command *commands, void (*run)(const char *))
{
    if (count < 2) {
        serve(commands);
        return 0;
    }
    run("");
    int file = open(arguments[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || dup2(file, STDOUT_FILENO) < 0)
        fatal("cannot write the file");
    print_ledger();
    say("end");
    return 0;
}

#endif
