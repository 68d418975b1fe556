/*
 * Allocates below frames that lead back down: to themselves, to each other, to below the stack, by frame pointer and by
 * what the file says of its code. Nobody gets from there to `main`.
 */
#include "ledger.h"

enum { ROUNDS = 40 };

static struct block kept[4];

static void keep(int index, struct block block)
{
    give(kept[index]);
    kept[index] = block;
}

SITE(itself_malloc);
static KEEP void itself_malloc(void)
{
    keep(0, took(&itself_malloc_site, malloc(100), 100));
}

SITE(each_other_malloc);
static KEEP void each_other_malloc(void)
{
    keep(1, took(&each_other_malloc_site, malloc(200), 200));
}

SITE(below_malloc);
static KEEP void below_malloc(void)
{
    keep(2, took(&below_malloc_site, malloc(300), 300));
}

SITE(described_malloc);
static KEEP void described_malloc(void)
{
    keep(3, took(&described_malloc_site, malloc(400), 400));
}

/* Calls a function with this in rbp. Nothing is said about it, so that it is taken to keep a frame pointer. */
void call_with(const void *frame_pointer, void (*function)(void));

/* A return address that lies in it. */
extern const char inside_call_with[];

/* Calls a function, and is described to have its caller's stack pointer (DW_CFA_def_cfa_expression: the word at rsp)
 * where its own is. */
void call_described(void (*function)(void));

__asm__(".text\n"
        ".type call_with, @function\n"
        "call_with:\n"
        "    push %rbp\n"
        "    mov %rdi, %rbp\n"
        "    call *%rsi\n"
        "inside_call_with:\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size call_with, . - call_with\n"
        ".type call_described, @function\n"
        "call_described:\n"
        "    .cfi_startproc\n"
        "    sub $24, %rsp\n"
        "    .cfi_escape 0x0f, 3, 0x77, 0, 0x06\n"
        "    mov %rsp, (%rsp)\n"
        "    call *%rdi\n"
        "    add $24, %rsp\n"
        "    ret\n"
        "    .cfi_endproc\n"
        ".size call_described, . - call_described\n");

/* What a function that keeps a frame pointer leaves on the stack. */
struct frame {
    const void *caller;
    const void *return_address;
};

static void run(const char *argument)
{
    static struct frame below;
    struct frame itself = { &itself, inside_call_with };
    struct frame each[2] = { { &each[1], inside_call_with }, { &each[0], inside_call_with } };
    (void)argument;
    below = (struct frame){ &itself, inside_call_with };
    for (size_t round = 0; round < ROUNDS; round++) {
        call_with(&itself, itself_malloc);
        call_with(&each[0], each_other_malloc);
        call_with(&below, below_malloc);
        call_described(described_malloc);
    }
}

int main(void)
{
    serve((const struct command[]){ { "run", run }, { 0 } });
    return 0;
}
