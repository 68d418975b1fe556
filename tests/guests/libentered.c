/*
 * A library with an allocator under mimalloc's names, which lies: its symbols say that mi_malloc is long, and another function, which is
 * called from elsewhere, begins in its first bytes.
 */
#include <stddef.h>
#include <string.h>

static _Alignas(16) char heap[1 << 20];
static size_t given;

__attribute__((used)) static void *give(size_t size)
{
    void *block = heap + given;
    given += (size + 31) / 16 * 16;
    return given > sizeof heap ? NULL : block;
}

__asm__(".text\n"
        ".globl mi_malloc\n.type mi_malloc, @function\nmi_malloc:\n"
        "xchg %ax, %ax\n"
        ".globl give_quickly\n.type give_quickly, @function\ngive_quickly:\n"
        "nopl 0(%rax)\n nopl 0(%rax)\n jmp give\n"
        ".size give_quickly, . - give_quickly\n"
        ".size mi_malloc, 64\n");

void *mi_realloc(void *old, size_t size)
{
    void *block = give(size);
    if (block && old)
        memmove(block, old, size);
    return block;
}

void mi_free(void *block)
{
    __asm__ volatile("" : : "r"(block) : "memory");
}
