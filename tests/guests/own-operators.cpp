// A program with an allocator of its own that nobody has heard of, whose operators new and delete do not call its malloc, as
// in browsers: each of them gets its blocks where malloc gets them.
#include "ledger.h"

#include <mutex>
#include <new>

namespace {

constexpr std::size_t HEAP = 64 << 20, ALIGNMENT = 16;
constexpr int ROUNDS = 100;

alignas(ALIGNMENT) char heap[HEAP];
std::size_t given;
std::mutex lock;

// Before each block is its size, for realloc. Nothing is taken back.
KEEP void *carve(std::size_t size)
{
    std::lock_guard<std::mutex> guard(lock);
    std::size_t rounded = (size + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (rounded > HEAP - given)
        fatal("the heap is too small");
    char *start = heap + given;
    given += rounded;
    *reinterpret_cast<std::size_t *>(start) = size;
    return start + ALIGNMENT;
}

KEEP void bury(void *address)
{
    // Something to stand in for work, so that this is a function like any.
    asm volatile("" : : "r"(address) : "memory");
}

} // namespace

extern "C" {

KEEP void *malloc(std::size_t size) { return carve(size); }

// What was never given before is zero.
KEEP void *calloc(std::size_t count, std::size_t size) { return carve(count * size); }

KEEP void *realloc(void *old, std::size_t size)
{
    void *address = carve(size);
    if (old) {
        std::size_t before = *reinterpret_cast<std::size_t *>(static_cast<char *>(old) - ALIGNMENT);
        memcpy(address, old, before < size ? before : size);
    }
    return address;
}

KEEP void free(void *address) { bury(address); }

} // extern "C"

KEEP void *operator new(std::size_t size) { return carve(size); }
KEEP void *operator new[](std::size_t size) { return carve(size); }
KEEP void operator delete(void *address) noexcept { bury(address); }
KEEP void operator delete(void *address, std::size_t) noexcept { bury(address); }
KEEP void operator delete[](void *address) noexcept { bury(address); }
KEEP void operator delete[](void *address, std::size_t) noexcept { bury(address); }

namespace {

SITE(by_malloc);
KEEP block by_malloc(std::size_t size) { return took(&by_malloc_site, malloc(size), size); }

SITE(by_new);
KEEP block by_new(std::size_t size) { return took(&by_new_site, operator new(size), size); }

SITE(by_new_array);
KEEP block by_new_array(std::size_t size) { return took(&by_new_array_site, operator new[](size), size); }

KEEP void by_delete(block block)
{
    gave(block);
    operator delete(block.address, block.size);
}

KEEP void by_delete_array(block block)
{
    gave(block);
    operator delete[](block.address);
}

void run(const char *)
{
    for (int round = 0; round < ROUNDS; round++) {
        std::size_t size = 16 + static_cast<std::size_t>(round);
        block blocks[] = {by_malloc(size), by_new(size * 2), by_new_array(size * 3)};
        if (round % 2)
            continue;
        give(blocks[0]);
        by_delete(blocks[1]);
        by_delete_array(blocks[2]);
    }
}

} // namespace

int main()
{
    const struct command commands[] = {{"run", run}, {nullptr, nullptr}};
    serve(commands);
}
