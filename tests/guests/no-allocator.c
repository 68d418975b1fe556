/*
 * A program without a C library: it has no allocator, and built with -m32 it is the 32-bit process that the
 * profiler refuses. It waits for a signal for ever.
 */
#ifdef __i386__
enum { SYS_PAUSE = 29 };
#define SYSCALL "int $0x80"
#define CLOBBERS
#else
enum { SYS_PAUSE = 34 };
#define SYSCALL "syscall"
#define CLOBBERS "rcx", "r11",
#endif

void _start(void)
{
    for (;;) {
        long result = SYS_PAUSE;
        __asm__ volatile(SYSCALL : "+a"(result) : : CLOBBERS "memory");
    }
}
