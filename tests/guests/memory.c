/*
 * Memory of every kind, in sizes that a test knows: blocks that are written to or not, a file, shared memory, and the
 * stack of a thread.
 */
#include "ledger.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define MIB ((size_t)1 << 20)

enum { PAGE = 4096, STACK_MIB = 4, BLOCKS = 64 };

static struct block kept[BLOCKS];
static int kept_blocks;

static void write_to(volatile char *bytes, size_t size)
{
    for (size_t at = 0; at < size; at += PAGE)
        bytes[at] = 1;
}

SITE(mebibytes_malloc);
static KEEP struct block mebibytes_malloc(size_t size)
{
    return took(&mebibytes_malloc_site, malloc(size), size);
}

static struct block keep(const char *mebibytes)
{
    struct block block = mebibytes_malloc((size_t)atoi(mebibytes) * MIB);
    if (!block.address || kept_blocks == BLOCKS)
        fatal("no room for a block");
    kept[kept_blocks++] = block;
    return block;
}

static void write_block(const char *mebibytes)
{
    struct block block = keep(mebibytes);
    write_to(block.address, block.size);
}

static void leave_block(const char *mebibytes)
{
    keep(mebibytes);
}

static void drop(const char *argument)
{
    (void)argument;
    while (kept_blocks > 0)
        give(kept[--kept_blocks]);
}

static void map_file(const char *path)
{
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) < 0)
        fatal("cannot open the file");
    volatile const char *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED)
        fatal("cannot map the file");
    for (off_t at = 0; at < status.st_size; at += PAGE)
        (void)bytes[at];
    close(file);
}

static void share(const char *mebibytes)
{
    size_t size = (size_t)atoi(mebibytes) * MIB;
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        fatal("cannot map shared memory");
    write_to(bytes, size);
}

static sem_t deep;
static atomic_int sleeper;

static KEEP void write_to_stack(void)
{
    volatile char room[STACK_MIB * MIB];
    write_to(room, sizeof room);
}

static void *sleep_on_stack(void *argument)
{
    write_to_stack();
    sleeper = (int)syscall(SYS_gettid);
    sem_post(&deep);
    for (;;)
        pause();
    return argument;
}

/* A thread's state: one letter, after the command name in parentheses. */
static char state_of(int thread)
{
    char path[64], stat[256] = { 0 };
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    int file = open(path, O_RDONLY);
    if (file < 0 || read(file, stat, sizeof stat - 1) < 0)
        fatal("cannot read the thread's state");
    close(file);
    char *name_end = strrchr(stat, ')');
    return name_end ? name_end[2] : '?';
}

static void start_thread(const char *argument)
{
    (void)argument;
    pthread_t thread;
    if (sem_init(&deep, 0, 0) || pthread_create(&thread, NULL, sleep_on_stack, NULL))
        fatal("cannot start a thread");
    while (sem_wait(&deep))
        ;
    while (state_of(sleeper) != 'S')
        sched_yield();
}

static void replace(const char *argument)
{
    (void)argument;
    execl("/bin/cat", "cat", (char *)NULL);
    fatal("cannot replace the program");
}

int main(void)
{
    /* A huge page would be more than what was written to. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    serve((const struct command[]){
        { "write", write_block },
        { "leave", leave_block },
        { "drop", drop },
        { "map", map_file },
        { "share", share },
        { "thread", start_thread },
        { "exec", replace },
        { 0 },
    });
    return 0;
}
