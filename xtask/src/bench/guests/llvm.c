/*
 * A compiler's library at work: `llvm LIBRARY` loads it, and for every line that it reads takes in a small program a few
 * times, by the library's C interface, which allocates and frees.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *context_create(void);
typedef void *buffer_create(const char *text, size_t length, const char *name, int is_terminated);
typedef int parse(void *context, void *buffer, void **module, char **message);
typedef void dispose(void *object);

static void *find(void *library, const char *name)
{
    void *function = dlsym(library, name);
    if (!function) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return function;
}

int main(int argc, char **argv)
{
    static const char text[] = "define i32 @next(i32 %a) {\n  %b = add i32 %a, 1\n  ret i32 %b\n}\n";
    void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    char line[64];
    if (!library) {
        fprintf(stderr, "usage: llvm LIBRARY: %s\n", argc == 2 ? dlerror() : "which?");
        return 2;
    }
    context_create *create_context = (context_create *)find(library, "LLVMContextCreate");
    buffer_create *create_buffer = (buffer_create *)find(library, "LLVMCreateMemoryBufferWithMemoryRangeCopy");
    parse *parse_text = (parse *)find(library, "LLVMParseIRInContext");
    dispose *dispose_module = (dispose *)find(library, "LLVMDisposeModule");
    dispose *dispose_context = (dispose *)find(library, "LLVMContextDispose");
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int round = 0; round < 20; round++) {
            void *context = create_context();
            void *buffer = create_buffer(text, sizeof text - 1, "next", 1);
            void *module;
            char *message = NULL;
            if (parse_text(context, buffer, &module, &message)) {
                fprintf(stderr, "%s\n", message);
                return 1;
            }
            dispose_module(module);
            dispose_context(context);
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
