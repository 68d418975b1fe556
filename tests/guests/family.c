/*
 * Makes children in every way, each of which does as it is told: `child COMMAND` has the child of this process do something,
 * `child child COMMAND` a child of that. What a process has from its parent is in its ledger as in use, and not as allocated.
 */
#include "ledger.h"

#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>

enum { BLOCKS = 120, GENERATIONS = 3, ANSWERS = 21 };

/* How a program of ours is called that begins anew. */
static const char anew[] = "anew";
static const char self[] = "/proc/self/exe";
extern char **environ;

static int generation;
static struct block kept[GENERATIONS][BLOCKS];

SITE(first_malloc);
static KEEP struct block first_malloc(size_t size)
{
    return took(&first_malloc_site, malloc(size), size);
}

SITE(second_malloc);
static KEEP struct block second_malloc(size_t size)
{
    return took(&second_malloc_site, malloc(size), size);
}

SITE(third_malloc);
static KEEP struct block third_malloc(size_t size)
{
    return took(&third_malloc_site, malloc(size), size);
}

SITE(again_realloc);
static KEEP struct block again_realloc(struct block old, size_t size)
{
    gave(old);
    return took(&again_realloc_site, realloc(old.address, size), size);
}

SITE(churn_malloc);
static KEEP struct block churn_malloc(size_t size)
{
    return took(&churn_malloc_site, malloc(size), size);
}

/* Every third block is freed. */
static void allocate(const char *argument)
{
    static struct block (*const by[])(size_t) = { first_malloc, second_malloc, third_malloc };
    (void)argument;
    for (int index = 0; index < BLOCKS; index++) {
        kept[generation][index] = by[generation]((size_t)index * 7 + 1);
        if (index % 3 == 0) {
            give(kept[generation][index]);
            kept[generation][index].address = NULL;
        }
    }
}

/* Frees what is left of a generation's, or of every block that `choose` leaves over. */
static void release_some(int of, int choose)
{
    for (int index = 0; index < BLOCKS; index++)
        if (index % choose == 1 || choose == 1) {
            give(kept[of][index]);
            kept[of][index].address = NULL;
        }
}

static void release(const char *argument)
{
    release_some(atoi(argument), 1);
}

static void release_half(const char *argument)
{
    release_some(atoi(argument), 2);
}

static void resize(const char *argument)
{
    struct block *blocks = kept[atoi(argument)];
    for (int index = 0; index < BLOCKS; index++)
        if (blocks[index].address)
            blocks[index] = again_realloc(blocks[index], blocks[index].size + 1000);
}

static pthread_t churner;
static atomic_int churning;

static void *churn(void *argument)
{
    (void)argument;
    while (churning)
        give(churn_malloc(100));
    return NULL;
}

static void start_churn(const char *argument)
{
    (void)argument;
    churning = 1;
    if (pthread_create(&churner, NULL, churn, NULL))
        fatal("no thread");
}

static void stop_churn(const char *argument)
{
    (void)argument;
    churning = 0;
    pthread_join(churner, NULL);
}

/* What is in use stays so, and was not allocated by this process. */
static void inherit(void)
{
    for (struct site *site = __start_ledger_sites; site < __stop_ledger_sites; site++) {
        site->freed_objects -= site->alloc_objects;
        site->freed_bytes -= site->alloc_bytes;
        site->alloc_objects = site->alloc_bytes = 0;
    }
    generation++;
}

/* To the child and from it. */
static int commands = -1, answers = -1;
static pid_t child;

static void answer(void)
{
    /* Nobody may wait for it. */
    if (write(ANSWERS, "x", 1) < 0)
        return;
}

static void obey(void);

static void take_ends(int from, int to)
{
    if (dup2(from, STDIN_FILENO) < 0 || dup2(to, ANSWERS) < 0)
        fatal("no pipe");
}

static pid_t fork_child(int from, int to)
{
    pid_t made = fork();
    if (made == 0) {
        take_ends(from, to);
        close(commands);
        close(answers);
        inherit();
        obey();
    }
    return made;
}

static pid_t fork_twice(int from, int to)
{
    pid_t made = fork();
    if (made == 0) {
        inherit();
        fork_child(from, to);
        _exit(0);
    }
    int status;
    if (waitpid(made, &status, 0) != made || status)
        fatal("the first did not end well");
    say("first %d", made);
    return 0;
}

static pid_t vfork_child(int from, int to)
{
    pid_t made = vfork();
    if (made == 0) {
        void *volatile block = malloc(5000);
        free(block);
        take_ends(from, to);
        execl(self, anew, (char *)NULL);
        _exit(1);
    }
    return made;
}

static pid_t spawn_child(int from, int to)
{
    char name[] = "anew";
    char *const arguments[] = { name, NULL };
    posix_spawn_file_actions_t actions;
    pid_t made;
    if (posix_spawn_file_actions_init(&actions) || posix_spawn_file_actions_adddup2(&actions, from, STDIN_FILENO)
        || posix_spawn_file_actions_adddup2(&actions, to, ANSWERS)
        || posix_spawn(&made, self, &actions, NULL, arguments, environ)
        || posix_spawn_file_actions_destroy(&actions))
        fatal("no process");
    return made;
}

static void await_answer(void)
{
    char mark;
    if (read(answers, &mark, 1) != 1)
        fatal("the child does not answer");
}

static void make(pid_t (*how)(int, int))
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
        fatal("no pipe");
    commands = to[1];
    answers = from[0];
    child = how(to[0], from[1]);
    if (child < 0)
        fatal("no process");
    close(to[0]);
    close(from[1]);
    await_answer();
    if (child)
        say("pid %d", child);
}

static void make_fork(const char *argument)
{
    (void)argument;
    make(fork_child);
}

static void make_twice(const char *argument)
{
    (void)argument;
    make(fork_twice);
}

static void make_vfork(const char *argument)
{
    (void)argument;
    make(vfork_child);
}

static void make_spawn(const char *argument)
{
    (void)argument;
    make(spawn_child);
}

/* A thread that was there before anybody could look. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int is_wanted;

static void *forks(void *argument)
{
    (void)argument;
    make(fork_child);
    return NULL;
}

static void *waits(void *argument)
{
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (!is_wanted)
            pthread_cond_wait(&changed, &mutex);
        forks(argument);
        is_wanted = 0;
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}

static void make_in_old_thread(const char *argument)
{
    (void)argument;
    pthread_mutex_lock(&mutex);
    is_wanted = 1;
    pthread_cond_broadcast(&changed);
    while (is_wanted)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void make_in_new_thread(const char *argument)
{
    pthread_t thread;
    (void)argument;
    if (pthread_create(&thread, NULL, forks, NULL) || pthread_join(thread, NULL))
        fatal("no thread");
}

/* Children that end at once, one after the other; the first tells what all of them have. */
static void many(const char *argument)
{
    for (int left = atoi(argument), is_first = 1; left > 0; left--, is_first = 0) {
        pid_t made = fork();
        if (made < 0)
            fatal("no process");
        if (made == 0) {
            inherit();
            release_half("0");
            allocate("");
            if (is_first)
                print_ledger();
            _exit(0);
        }
        say("pid %d", made);
        int status;
        if (waitpid(made, &status, 0) != made || status)
            fatal("a child did not end well");
    }
}

/* Begins another program in this process. */
static void replace(const char *argument)
{
    (void)argument;
    execl(self, anew, (char *)NULL);
    fatal("no program");
}

static void await_end(const char *argument)
{
    int status;
    (void)argument;
    close(commands);
    if (waitpid(child, &status, 0) != child || status)
        fatal("the child did not end well");
}

static void print_pid(const char *argument)
{
    (void)argument;
    say("pid %d", getpid());
}

static void relay(const char *argument);

static const struct command known[] = {
    { "allocate", allocate },      { "release", release },        { "release-half", release_half },
    { "resize", resize },          { "start-churn", start_churn }, { "stop-churn", stop_churn },
    { "fork", make_fork },         { "fork-twice", make_twice },  { "vfork", make_vfork },
    { "spawn", make_spawn },       { "fork-in-old-thread", make_in_old_thread },
    { "fork-in-new-thread", make_in_new_thread },                 { "many", many },
    { "exec", replace },           { "wait", await_end },         { "getpid", print_pid },
    { "child", relay },
    { 0 }
};

/* Has the child do something. */
static void relay(const char *argument)
{
    char line[128];
    int length = snprintf(line, sizeof line, "%s\n", argument);
    if (write(commands, line, (size_t)length) != length)
        fatal("the child does not listen");
    await_answer();
}

static void run(char *line)
{
    char *argument = strchr(line, ' ');
    if (argument)
        *argument++ = 0;
    if (!strcmp(line, "leave"))
        _exit(0);
    if (!strcmp(line, "ledger")) {
        print_ledger();
        return;
    }
    const struct command *command = known;
    while (command->name && strcmp(command->name, line))
        command++;
    if (!command->name)
        fatal("unknown command");
    command->run(argument ? argument : "");
}

/* Does as it is told, until `leave` or until nobody is there any more: then it allocates once more, tells, and ends. */
__attribute__((noreturn)) static void obey(void)
{
    char line[128];
    answer();
    while (read_command(line, sizeof line)) {
        run(line);
        answer();
    }
    release_half("0");
    allocate("");
    print_ledger();
    say("alone");
    _exit(0);
}

int main(int count, char **arguments)
{
    pthread_t waiting;
    if (count > 0 && !strcmp(arguments[0], anew))
        obey();
    if (count > 1) {
        /* What it is to do, instead of what it is told. */
        for (int index = 1; index < count; index++)
            run(arguments[index]);
        return 0;
    }
    if (pthread_create(&waiting, NULL, waits, NULL))
        fatal("no thread");
    serve(known);
    return 0;
}
