/*
 * A guest that works on command: `GUEST THREADS DEPTH` says `ready PID`. Each line that it reads is a number of seconds:
 * it works for so long in that many threads, that many frames deep, and says how many nanoseconds an operation took in
 * each of them. So a slow profiler makes for fewer operations and not for a longer wait, and starting is no part of it.
 *
 * Who includes this defines what is done before it is ready, and a few operations, of which it gives the number.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void prepare(void);
static long operate(void);

struct worker {
    pthread_t thread;
    int64_t took_ns;
    long operations;
};

static long depth;
static double seconds;
static volatile long kept;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static __attribute__((noinline)) void operate_until_time_is_over(struct worker *worker)
{
    int64_t start_ns = now_ns(), end_ns = start_ns + (int64_t)(seconds * 1e9);
    do
        worker->operations += operate();
    while (now_ns() < end_ns);
    worker->took_ns = now_ns() - start_ns;
}

/* Keeps values across its call, as most functions do: the compiler saves registers for them, rbp among them. */
static __attribute__((noinline)) long descend(long frames, struct worker *worker, long a, long b, long c, long d)
{
    long below = 0;
    if (frames > 1)
        below = descend(frames - 1, worker, a + b, b ^ c, c + d, d ^ a);
    else
        operate_until_time_is_over(worker);
    return below + (a ^ b ^ c ^ d);
}

static void *work(void *worker)
{
    kept = descend(depth, worker, 1, 2, 3, 4);
    return NULL;
}

int main(int argc, char **argv)
{
    enum { MOST_THREADS = 64 };
    long count = argc == 3 ? atol(argv[1]) : 0;
    char line[64];
    if (count < 1 || count > MOST_THREADS) {
        fprintf(stderr, "usage: %s THREADS DEPTH\n", argv[0]);
        return 2;
    }
    depth = atol(argv[2]);
    prepare();
    printf("ready %d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        struct worker workers[MOST_THREADS] = { 0 };
        double took_ns = 0, operations = 0;
        seconds = atof(line);
        for (long index = 0; index < count; index++)
            if (pthread_create(&workers[index].thread, NULL, work, &workers[index]))
                return 1;
        for (long index = 0; index < count; index++) {
            pthread_join(workers[index].thread, NULL);
            took_ns += (double)workers[index].took_ns;
            operations += (double)workers[index].operations;
        }
        printf("%.2f\n", took_ns / operations);
        fflush(stdout);
    }
    return 0;
}
