/*
 * Defines malloc and its family itself, on top of glibc's: every block must count once and not twice.
 *
 * With a callback that leaves by longjmp, as an out-of-memory handler would, the program's own malloc is
 * abandoned before glibc's has begun.
 */
#include "ledger.h"

#include <setjmp.h>

enum { BLOCKS = 200 };

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void __libc_free(void *address);

static atomic_long calls;
static void (*callback)(void);
static jmp_buf landing;
static struct block kept[BLOCKS];

KEEP void *malloc(size_t size)
{
    calls++;
    if (callback)
        callback();
    void *address = __libc_malloc(size);
    calls++;
    return address;
}

KEEP void *calloc(size_t count, size_t size)
{
    calls++;
    void *address = __libc_calloc(count, size);
    calls++;
    return address;
}

KEEP void *realloc(void *old, size_t size)
{
    calls++;
    void *address = __libc_realloc(old, size);
    calls++;
    return address;
}

KEEP void free(void *address)
{
    calls++;
    __libc_free(address);
    calls++;
}

SITE(through_malloc);
static KEEP struct block through_malloc(size_t size)
{
    return took(&through_malloc_site, malloc(size), size);
}

SITE(through_calloc);
static KEEP struct block through_calloc(size_t size)
{
    return took(&through_calloc_site, calloc(1, size), size);
}

SITE(through_realloc);
static KEEP struct block through_realloc(struct block old, size_t size)
{
    gave(old);
    return took(&through_realloc_site, realloc(old.address, size), size);
}

static KEEP void leave(void)
{
    longjmp(landing, 1);
}

SITE(leaves_malloc);
static KEEP void leaves_malloc(void)
{
    callback = leave;
    if (setjmp(landing) == 0 && took(&leaves_malloc_site, malloc(10), 10).address)
        fatal("malloc came back");
    callback = NULL;
}

static void run(const char *argument)
{
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        size_t size = 16 + (size_t)index;
        if (index % 5 == 0)
            leaves_malloc();
        switch (index % 3) {
        case 0:
            kept[index] = through_malloc(size);
            break;
        case 1:
            kept[index] = through_calloc(size);
            break;
        default:
            kept[index] = through_realloc(through_malloc(size), size * 20);
        }
        if (index % 4 == 0)
            give(kept[index]);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
