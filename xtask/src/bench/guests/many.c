/*
 * Many threads and many mapped files: `many FOLDER LIBRARIES THREADS` loads that many libraries, starts that many threads,
 * which sleep, and says `ready`. Another thread looks at the clock all the time. For every line that is read, the longest
 * time in microseconds is printed that lay between two looks since the last line: for so long, at most, it was stopped.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static _Atomic int64_t longest_ns;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void *sleep_forever(void *unused)
{
    pthread_mutex_lock(&mutex);
    for (;;)
        pthread_cond_wait(&never, &mutex);
    return unused;
}

static void *look_at_the_clock(void *unused)
{
    for (int64_t last_ns = now_ns();;) {
        int64_t now = now_ns();
        if (now - last_ns > atomic_load_explicit(&longest_ns, memory_order_relaxed))
            atomic_store(&longest_ns, now - last_ns);
        last_ns = now;
    }
    return unused;
}

static void start(void *(*function)(void *))
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    if (pthread_create(&thread, &attributes, function, NULL)) {
        perror("many");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    char line[256];
    if (argc != 4) {
        fprintf(stderr, "usage: many FOLDER LIBRARIES THREADS\n");
        return 2;
    }
    for (long index = 0; index < atol(argv[2]); index++) {
        snprintf(line, sizeof line, "%s/libsmall-%ld.so", argv[1], index);
        if (!dlopen(line, RTLD_NOW)) {
            fprintf(stderr, "%s\n", dlerror());
            return 2;
        }
    }
    for (long index = 0; index < atol(argv[3]); index++)
        start(sleep_forever);
    start(look_at_the_clock);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%.1f\n", (double)atomic_exchange(&longest_ns, 0) / 1e3);
        fflush(stdout);
    }
    return 0;
}
