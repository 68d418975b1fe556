/*
 * Has a malloc that begins in the middle of another function, as a forged symbol might: a probe there might break it.
 */
#include "ledger.h"

void __libc_free(void *address);

__asm__(
    ".text\n"
    ".globl begins_before_malloc\n"
    ".type begins_before_malloc, @function\n"
    "begins_before_malloc:\n"
    ".cfi_startproc\n"
    "nop\n"
    ".globl malloc\n"
    ".type malloc, @function\n"
    "malloc:\n"
    "jmp __libc_malloc@PLT\n"
    ".cfi_endproc\n"
    ".size malloc, . - malloc\n"
    ".size begins_before_malloc, . - begins_before_malloc\n");

KEEP void free(void *address)
{
    __libc_free(address);
}

SITE(through_malloc);
static KEEP struct block through_malloc(size_t size)
{
    return took(&through_malloc_site, malloc(size), size);
}

static void run(const char *argument)
{
    (void)argument;
    for (size_t size = 1; size <= 100; size++)
        give(through_malloc(size));
    through_malloc(77);
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
