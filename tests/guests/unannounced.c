/*
 * Maps code by itself, with nobody's loader to say so: a library, then code made at run time, then another library, all
 * at one address, so that what was learned of one is wrong for the next.
 *
 * The libraries are one source compiled twice: other functions with other frames, and the same return addresses. The
 * code made at run time returns to one of them too, and keeps a frame pointer.
 */
#include "ledger.h"

#include <fcntl.h>
#include <sys/mman.h>

enum { ROUNDS = 50, SIZE = 1 << 16, PAGE = 4096 };

typedef void *allocator(size_t size);
typedef void *library_function(size_t size, allocator *allocate);

/* The functions are the libraries'; the ledger outlives them here. */
SITE(first_malloc);
CHAIN(first_malloc, "first_malloc first_work call main");
SITE(second_malloc);
CHAIN(second_malloc, "second_malloc second_work call main");
SITE(code_malloc);
CHAIN(code_malloc, "code_malloc code main");

static struct block kept[3];
static char *base;
static char *return_address;

static KEEP void *allocate(size_t size)
{
    return_address = __builtin_return_address(0);
    void *address = malloc(size);
    __asm__ volatile("" : "+r"(address));
    return address;
}

/* At the same address each time; anything else there is a mistake. */
static void *map(size_t length, int protection, int flags, int file, char *address)
{
    void *mapped = mmap(address, length, protection, flags | (address ? MAP_FIXED_NOREPLACE : 0), file, 0);
    if (mapped == MAP_FAILED || (address && mapped != address))
        fatal("no mapping");
    return mapped;
}

/* The whole file in one piece: its code lies as far from its beginning there as in the file. */
static void map_library(const char *name)
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    if (length < 0)
        fatal("no name");
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fatal("no library");
    base = map(SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, base);
    close(file);
}

/* The library's function is its entry point (e_entry of the ELF header). */
static KEEP void call(struct site *site, struct block *last)
{
    uint64_t entry;
    memcpy(&entry, base + 24, sizeof entry);
    library_function *work = (library_function *)(base + entry);
    for (size_t round = 0; round < ROUNDS; round++) {
        size_t size = 64 + round;
        give(*last);
        *last = took(site, work(size, allocate), size);
    }
}

static void map_first(const char *argument)
{
    (void)argument;
    map_library("libunannounced-first.so");
}

static void map_second(const char *argument)
{
    (void)argument;
    map_library("libunannounced-second.so");
}

static void call_first(const char *argument)
{
    (void)argument;
    call(&first_malloc_site, &kept[0]);
}

static void call_second(const char *argument)
{
    (void)argument;
    call(&second_malloc_site, &kept[1]);
}

static void unmap(const char *argument)
{
    (void)argument;
    munmap(base, SIZE);
}

static KEEP struct block code_malloc(library_function *work, size_t size)
{
    return took(&code_malloc_site, work(size, allocate), size);
}

/* Makes code that calls from right before the address to which the library's last call returned. */
static KEEP void code(const char *argument)
{
    /* push %rbp; mov %rsp, %rbp; call *%rsi; pop %rbp; ret */
    static const unsigned char bytes[] = { 0x55, 0x48, 0x89, 0xe5, 0xff, 0xd6, 0x5d, 0xc3 };
    enum { CALL_END = 6 };
    (void)argument;
    char *start = return_address - CALL_END;
    char *page = (char *)((uintptr_t)start & -(uintptr_t)PAGE);
    map(2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, page);
    memcpy(start, bytes, sizeof bytes);
    for (size_t round = 0; round < ROUNDS; round++) {
        give(kept[2]);
        kept[2] = code_malloc((library_function *)start, 300 + round);
    }
}

static void run(const char *argument)
{
    map_first(argument);
    call_first(argument);
    unmap(argument);
    code(argument);
    unmap(argument);
    map_second(argument);
    call_second(argument);
    unmap(argument);
}

int main(void)
{
    serve((const struct command[]){
        { "map-first", map_first }, { "map-second", map_second }, { "call-first", call_first },
        { "call-second", call_second }, { "unmap", unmap }, { "code", code }, { "run", run }, { 0 } });
    return 0;
}
