#include <stddef.h>

void c_malloc(size_t size);
void nested_malloc(size_t size);
void call_back(size_t size);
void call_back_from_thread(size_t size);
void expect(int threads);
void meet(void);
void say_ready(void);
void say_ledger(void);
void say_chains(void);
void say_done(void);
