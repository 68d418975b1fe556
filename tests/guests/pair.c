/*
 * What one malloc(64) and its free cost: `pair THREADS DEPTH PAIRS` runs that many pairs in each thread, that many
 * frames deep, and prints the nanoseconds that each pair took, the mean of all threads.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long depth, pairs;
static volatile long kept;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static __attribute__((noinline)) void run_pairs(void)
{
    for (long index = 0; index < pairs; index++) {
        /* Volatile, for the compiler would leave both calls out. */
        void *volatile block = malloc(64);
        free(block);
    }
}

/* Keeps values across its call, as most functions do: the compiler saves registers for them, rbp among them. */
static __attribute__((noinline)) long descend(long frames, long a, long b, long c, long d, long e)
{
    long below = 0;
    if (frames > 1)
        below = descend(frames - 1, a + b, b ^ c, c + d, d ^ e, e + a);
    else
        run_pairs();
    return below + (a ^ b ^ c ^ d ^ e);
}

static void *work(void *took_ns)
{
    int64_t start_ns = now_ns();
    kept = descend(depth, 1, 2, 3, 4, 5);
    *(int64_t *)took_ns = now_ns() - start_ns;
    return NULL;
}

int main(int argc, char **argv)
{
    enum { MOST_THREADS = 64 };
    pthread_t threads[MOST_THREADS];
    int64_t took_ns[MOST_THREADS], sum_ns = 0;
    long count = argc == 4 ? atol(argv[1]) : 0;
    if (count < 1 || count > MOST_THREADS) {
        fprintf(stderr, "usage: pair THREADS DEPTH PAIRS\n");
        return 2;
    }
    depth = atol(argv[2]);
    pairs = atol(argv[3]);
    for (long index = 0; index < count; index++)
        if (pthread_create(&threads[index], NULL, work, &took_ns[index]))
            return 1;
    for (long index = 0; index < count; index++) {
        pthread_join(threads[index], NULL);
        sum_ns += took_ns[index];
    }
    printf("%.2f\n", (double)sum_ns / (double)count / (double)pairs);
    return 0;
}
