/* Loads a library for every line that it reads, which names it. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    char line[256];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!dlopen(line, RTLD_NOW)) {
            fprintf(stderr, "%s\n", dlerror());
            return 2;
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
