/*
 * What every guest shares: the ledger of its own allocations, and the commands it answers to.
 *
 * A site is a function that allocates, kept apart from its callers by SITE and KEEP. Its counters live in
 * static memory and nothing here allocates, so that a recording holds the guest's allocations and no others.
 *
 * The guest prints `ready`, reads one command a line from its standard input, and answers each with lines of
 * its own, then `done`. Every guest knows `ledger`, which prints one line for each site
 *     ledger FUNCTION ALLOC_OBJECTS ALLOC_BYTES INUSE_OBJECTS INUSE_BYTES
 * then `end`, `chains`, which prints for each site that has one
 *     chain FUNCTION CALLER… ENTRY
 * the functions that its stacks hold from the leaf on, others between them, and `exit`. The end of its input ends
 * it too, so that no guest outlives a test that crashed.
 */
#ifndef LEDGER_H
#define LEDGER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
#include <atomic>
using std::atomic_fetch_add_explicit;
using std::atomic_long;
using std::memory_order_relaxed;
#else
#include <stdatomic.h>
#endif

/* Neither inlined nor cloned: the function's name in the profile is its name here. */
#define KEEP __attribute__((noipa))

/* A function that allocates. Aligned, so that the linker packs the section like an array. */
struct site {
    const char *name;
    atomic_long alloc_objects, alloc_bytes, freed_objects, freed_bytes;
} __attribute__((aligned(64)));

/* The counters of a function. */
#define SITE(function) \
    static struct site function##_site __attribute__((section("ledger_sites"), used)) = { #function, 0, 0, 0, 0 }

/* What is printed after `chain`: from a site to its thread's first function, in order. */
#define CHAIN(name, text) \
    static const char *const name##_chain __attribute__((section("ledger_chains"), used)) = text

/* Hidden, so that a shared library with sites of its own finds those and not the program's. */
extern struct site __start_ledger_sites[] __attribute__((visibility("hidden")));
extern struct site __stop_ledger_sites[] __attribute__((visibility("hidden")));

/* Weak, for most guests have none. */
extern const char *const __start_ledger_chains[] __attribute__((weak, visibility("hidden")));
extern const char *const __stop_ledger_chains[] __attribute__((weak, visibility("hidden")));

/* A block, with what its free has to take off the ledger. */
struct block {
    void *address;
    size_t size;
    struct site *site;
};

/* Ends a guest whose allocator does not do what the guest was written to provoke. */
__attribute__((noreturn, unused)) static void fatal(const char *what)
{
    char line[256];
    int length = snprintf(line, sizeof line, "guest: %s\n", what);
    if (write(STDERR_FILENO, line, (size_t)length) < 0)
        _exit(4);
    _exit(3);
}

/*
 * Counts the result of an allocation; a null pointer is none. The counting comes after the call and so keeps
 * it from being a tail call, which would leave the site out of the stack.
 */
static inline struct block took(struct site *site, void *address, size_t size)
{
    if (address) {
        atomic_fetch_add_explicit(&site->alloc_objects, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&site->alloc_bytes, (long)size, memory_order_relaxed);
    }
    struct block block = { address, size, site };
    return block;
}

/* Takes a block off the ledger: it was freed or resized. */
static inline void gave(struct block block)
{
    if (!block.address)
        return;
    atomic_fetch_add_explicit(&block.site->freed_objects, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&block.site->freed_bytes, (long)block.size, memory_order_relaxed);
}

/* Frees a block. */
static inline void give(struct block block)
{
    gave(block);
    free(block.address);
}

/* Writes a line in one piece. */
__attribute__((unused, format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[256];
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    __builtin_va_end(arguments);
    line[length++] = '\n';
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        _exit(4);
}

/* Prints the ledger's lines. */
__attribute__((unused)) static void print_ledger(void)
{
    for (struct site *site = __start_ledger_sites; site < __stop_ledger_sites; site++)
        say("ledger %s %ld %ld %ld %ld", site->name, (long)site->alloc_objects, (long)site->alloc_bytes,
            site->alloc_objects - site->freed_objects, site->alloc_bytes - site->freed_bytes);
}

/* Prints the chains' lines. */
__attribute__((unused)) static void print_chains(void)
{
    for (const char *const *chain = __start_ledger_chains; chain < __stop_ledger_chains; chain++)
        say("chain %s", *chain);
}

/* Something that a guest does when told to; the argument is what followed the name, perhaps nothing. */
struct command {
    const char *name;
    void (*run)(const char *argument);
};

/* Reads a line without its end; byte by byte, for stdio's buffer would be an allocation. */
static int read_command(char *line, size_t capacity)
{
    size_t length = 0;
    while (length + 1 < capacity) {
        ssize_t count = read(STDIN_FILENO, line + length, 1);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return 0;
        if (line[length] == '\n')
            break;
        length++;
    }
    line[length] = 0;
    return 1;
}

/* Answers commands, the last of which has no name, until `exit` or the end of input. */
__attribute__((unused)) static void serve(const struct command *commands)
{
    char line[128];
    say("ready");
    while (read_command(line, sizeof line)) {
        char *argument = strchr(line, ' ');
        if (argument)
            *argument++ = 0;
        if (!strcmp(line, "ledger")) {
            print_ledger();
            say("end");
            continue;
        }
        if (!strcmp(line, "chains")) {
            print_chains();
            say("done");
            continue;
        }
        if (!strcmp(line, "exit")) {
            say("done");
            return;
        }
        const struct command *command = commands;
        while (command->name && strcmp(command->name, line))
            command++;
        if (!command->name)
            fatal("unknown command");
        command->run(argument ? argument : "");
        say("done");
    }
}

#endif
