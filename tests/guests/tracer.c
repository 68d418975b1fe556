/*
 * Traces another process as a debugger does: `attach PID` takes all its threads, `look` stops each, reads its registers and lets it go on,
 * `detach` leaves it.
 */
#include "ledger.h"

#include <dirent.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

enum { THREADS = 64 };

/* The ledger has to have a line. */
SITE(nothing);

static pid_t threads[THREADS];
static int count;

static void attach(const char *pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        fatal("no such process");
    for (struct dirent *task; count < THREADS && (task = readdir(tasks));)
        if (atoi(task->d_name) && !ptrace(PTRACE_SEIZE, atoi(task->d_name), 0, 0))
            threads[count++] = atoi(task->d_name);
    closedir(tasks);
    say("threads %d", count);
}

static void await_stop(pid_t thread)
{
    int status;
    if (ptrace(PTRACE_INTERRUPT, thread, 0, 0) || waitpid(thread, &status, __WALL) != thread || !WIFSTOPPED(status))
        fatal("a thread does not stop");
}

static void look(const char *argument)
{
    (void)argument;
    struct user_regs_struct registers;
    for (int index = 0; index < count; index++) {
        await_stop(threads[index]);
        if (ptrace(PTRACE_GETREGS, threads[index], 0, &registers) || !registers.rip)
            fatal("a thread has no registers");
        if (ptrace(PTRACE_CONT, threads[index], 0, 0))
            fatal("a thread does not go on");
    }
}

static void detach(const char *argument)
{
    (void)argument;
    while (count) {
        await_stop(threads[--count]);
        ptrace(PTRACE_DETACH, threads[count], 0, 0);
    }
}

int main(void)
{
    serve((const struct command[]){ { "attach", attach }, { "look", look }, { "detach", detach }, { 0 } });
    return 0;
}
