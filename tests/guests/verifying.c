/*
 * Threads that allocate, resize and free without end, hand blocks to each other, and check all of it: what is in their blocks, where
 * blocks lie, registers that a function has to keep, and errno. What is not as it has to be ends the guest.
 *
 * `unaligned` has it take blocks wherever they lie: some that mimalloc 2.0 gives lie elsewhere than they were to.
 * `work` starts the threads, or `work N` so many of them, `worked` is done when each has gone on, and `rest` ends them, frees everything, and prints how often they
 * have allocated.
 */
#include "ledger.h"

#include <pthread.h>

enum { THREADS = 8, MOST_THREADS = 256, SHARED = 256, KEPT_ERRNO = 77, STEPS = 50 };

/* The ledger has to have a line, and what is allocated here is more than anybody counts. */
SITE(nothing);

/* What a block begins with; the rest follows from it. */
struct header {
    uint64_t size, seed;
};

static _Atomic(struct header *) shared[SHARED];
static atomic_ulong steps[MOST_THREADS];
static atomic_int is_over;
static pthread_t threads[MOST_THREADS];
static int working, is_unaligned;

/* Calls a function of up to three arguments, with numbers in all registers that it has to keep. */
void *keeping(uintptr_t function, uint64_t first, uint64_t second, uint64_t third, uint64_t number);
__asm__(".text\n.type keeping, @function\nkeeping:\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %r8\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n"
        "lea 1(%r8), %rbx\n lea 2(%r8), %rbp\n lea 3(%r8), %r12\n lea 4(%r8), %r13\n lea 5(%r8), %r14\n lea 6(%r8), %r15\n"
        "call *%rax\n pop %r8\n"
        "inc %r8\n cmp %r8, %rbx\n jne 1f\n inc %r8\n cmp %r8, %rbp\n jne 1f\n inc %r8\n cmp %r8, %r12\n jne 1f\n"
        "inc %r8\n cmp %r8, %r13\n jne 1f\n inc %r8\n cmp %r8, %r14\n jne 1f\n inc %r8\n cmp %r8, %r15\n jne 1f\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
        "1: ud2\n .size keeping, . - keeping\n");

#define CALL(function, first, second, third)                                                                 \
    keeping((uintptr_t)(function), (uint64_t)(first), (uint64_t)(second), (uint64_t)(third), random_number(state))

static uint64_t random_number(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Mostly small, seldom large, never less than what a block begins with. */
static size_t random_size(uint64_t *state)
{
    uint64_t number = random_number(state);
    unsigned kind = number % 1000;
    size_t limit = kind < 900 ? 300 : kind < 990 ? 4000 : kind < 999 ? 40000 : 400000;
    return sizeof(struct header) + (number >> 20) % limit;
}

static void fill(struct header *block, size_t size, uint64_t seed)
{
    uint64_t *words = (uint64_t *)(block + 1), number = seed;
    *block = (struct header){ size, seed };
    for (size_t index = 0; index < (size - sizeof *block) / sizeof *words; index++)
        words[index] = number += 0x9e3779b97f4a7c15u;
}

static void verify(struct header *block, size_t size)
{
    uint64_t *words = (uint64_t *)(block + 1), number = block->seed;
    for (size_t index = 0; index < (size - sizeof *block) / sizeof *words; index++)
        if (words[index] != (number += 0x9e3779b97f4a7c15u))
            fatal("a block has changed");
}

static struct header *allocate(uint64_t *state, size_t size)
{
    uint64_t kind = random_number(state) % 8;
    size_t alignment = 16u << random_number(state) % 6;
    struct header *block = NULL;
    errno = KEPT_ERRNO;
    switch (kind) {
    case 0:
        block = CALL(calloc, 1 + size / 8, 8, 0);
        for (size_t index = 0; block && index < size; index++)
            if (((char *)block)[index])
                fatal("calloc gave what is not zero");
        break;
    case 1:
        if ((int)(intptr_t)CALL(posix_memalign, (uintptr_t)&block, alignment, size))
            fatal("posix_memalign failed");
        break;
    case 2:
        block = CALL(aligned_alloc, alignment, (size + alignment - 1) & -alignment, 0);
        break;
    default:
        block = CALL(malloc, size, 0, 0);
        alignment = 16;
    }
    if (!block || (kind && !is_unaligned && (uintptr_t)block % alignment))
        fatal("a block is not where it has to be");
    if (errno != KEPT_ERRNO)
        fatal("errno has changed");
    return block;
}

static void release(uint64_t *state, struct header *block)
{
    verify(block, block->size);
    block->size = 0;
    CALL(free, (uintptr_t)block, 0, 0);
}

static struct header *resize(uint64_t *state, struct header *block, size_t size)
{
    size_t before = block->size;
    errno = KEPT_ERRNO;
    block = CALL(realloc, (uintptr_t)block, size, 0);
    if (!block || errno != KEPT_ERRNO)
        fatal("realloc failed");
    verify(block, before < size ? before : size);
    return block;
}

static void *work_on(void *argument)
{
    long thread = (long)argument;
    uint64_t seed = 88172645463325252u + (uint64_t)thread, *state = &seed;
    while (!is_over) {
        size_t size = random_size(state);
        struct header *block = atomic_exchange(&shared[random_number(state) % SHARED], NULL);
        if (block && random_number(state) % 2) {
            release(state, block);
            block = NULL;
        }
        block = block ? resize(state, block, size) : allocate(state, size);
        fill(block, size, random_number(state));
        block = atomic_exchange(&shared[random_number(state) % SHARED], block);
        if (block)
            release(state, block);
        /* What has no content is a block nevertheless. */
        CALL(free, (uintptr_t)CALL(malloc, random_number(state) % 2, 0, 0), 0, 0);
        CALL(free, 0, 0, 0);
        steps[thread]++;
    }
    return NULL;
}

static void work(const char *argument)
{
    is_over = 0;
    working = *argument ? atoi(argument) : THREADS;
    for (long thread = 0; thread < working; thread++)
        if (pthread_create(&threads[thread], NULL, work_on, (void *)thread))
            fatal("no thread");
}

static void worked(const char *argument)
{
    (void)argument;
    unsigned long before[MOST_THREADS];
    for (int thread = 0; thread < working; thread++)
        before[thread] = steps[thread];
    for (int thread = 0; thread < working; thread++)
        while (steps[thread] < before[thread] + STEPS)
            usleep(100);
}

static void rest(const char *argument)
{
    (void)argument;
    uint64_t seed = 1;
    unsigned long all = 0;
    is_over = 1;
    for (int thread = 0; thread < working; thread++) {
        pthread_join(threads[thread], NULL);
        all += steps[thread];
    }
    for (int index = 0; index < SHARED; index++) {
        struct header *block = atomic_exchange(&shared[index], NULL);
        if (block)
            release(&seed, block);
    }
    say("steps %lu", all);
}

static void unaligned(const char *argument)
{
    (void)argument;
    is_unaligned = 1;
}

int main(void)
{
    serve((const struct command[]){
        { "unaligned", unaligned }, { "work", work }, { "worked", worked }, { "rest", rest }, { 0 } });
    return 0;
}
