// Calls every form of operator new and operator delete that a program may replace, from a site of its own and on several
// threads; lets them fail, with and without a new-handler, and catches what they throw.
//
// The operators are called as functions: a compiler may leave out a pair of new-expression and delete-expression.
#include "allocators.h"

#include <new>
#include <sys/resource.h>

namespace {

enum { ROUNDS = 24, THROWS = 20 };

using std::align_val_t;
using std::nothrow;

constexpr align_val_t ALIGNMENT{128};

// More than any allocator has.
volatile std::size_t huge = PTRDIFF_MAX - 4096;

#define TAKES(function, call)                                                                  \
    SITE(function);                                                                            \
    KEEP struct block function(std::size_t size)                                               \
    {                                                                                          \
        return took(&function##_site, call, size);                                             \
    }

#define GIVES(function, call)                                                                  \
    KEEP void function(struct block block)                                                     \
    {                                                                                          \
        gave(block);                                                                           \
        call;                                                                                  \
    }

TAKES(call_new, operator new(size))
TAKES(call_new_array, operator new[](size))
TAKES(call_new_nothrow, operator new(size, nothrow))
TAKES(call_new_array_nothrow, operator new[](size, nothrow))
TAKES(call_new_aligned, operator new(size, ALIGNMENT))
TAKES(call_new_array_aligned, operator new[](size, ALIGNMENT))
TAKES(call_new_aligned_nothrow, operator new(size, ALIGNMENT, nothrow))
TAKES(call_new_array_aligned_nothrow, operator new[](size, ALIGNMENT, nothrow))

GIVES(give_delete, operator delete(block.address))
GIVES(give_delete_array, operator delete[](block.address))
GIVES(give_delete_nothrow, operator delete(block.address, nothrow))
GIVES(give_delete_array_nothrow, operator delete[](block.address, nothrow))
GIVES(give_delete_sized, operator delete(block.address, block.size))
GIVES(give_delete_array_sized, operator delete[](block.address, block.size))
GIVES(give_delete_aligned, operator delete(block.address, ALIGNMENT))
GIVES(give_delete_array_aligned, operator delete[](block.address, ALIGNMENT))
GIVES(give_delete_aligned_nothrow, operator delete(block.address, ALIGNMENT, nothrow))
GIVES(give_delete_array_aligned_nothrow, operator delete[](block.address, ALIGNMENT, nothrow))
GIVES(give_delete_sized_aligned, operator delete(block.address, block.size, ALIGNMENT))
GIVES(give_delete_array_sized_aligned, operator delete[](block.address, block.size, ALIGNMENT))

} // namespace

// Google's tcmalloc has operators that are told how often a block will be used.
enum class __hot_cold_t : uint8_t {};
__attribute__((weak)) void *operator new(std::size_t, __hot_cold_t);
__attribute__((weak)) void *operator new[](std::size_t, __hot_cold_t);
__attribute__((weak)) void *operator new(std::size_t, const std::nothrow_t &, __hot_cold_t) noexcept;
__attribute__((weak)) void *operator new[](std::size_t, const std::nothrow_t &, __hot_cold_t) noexcept;
__attribute__((weak)) void *operator new(std::size_t, align_val_t, __hot_cold_t);
__attribute__((weak)) void *operator new[](std::size_t, align_val_t, __hot_cold_t);
__attribute__((weak)) void *operator new(std::size_t, align_val_t, const std::nothrow_t &, __hot_cold_t) noexcept;
__attribute__((weak)) void *operator new[](std::size_t, align_val_t, const std::nothrow_t &, __hot_cold_t) noexcept;

namespace {

constexpr __hot_cold_t COLD{0}, HOT{255};

TAKES(call_new_cold, operator new(size, COLD))
TAKES(call_new_hot, operator new(size, HOT))
TAKES(call_new_array_cold, operator new[](size, COLD))
TAKES(call_new_nothrow_cold, operator new(size, nothrow, COLD))
TAKES(call_new_array_nothrow_cold, operator new[](size, nothrow, COLD))
TAKES(call_new_aligned_cold, operator new(size, ALIGNMENT, COLD))
TAKES(call_new_array_aligned_cold, operator new[](size, ALIGNMENT, COLD))
TAKES(call_new_aligned_nothrow_cold, operator new(size, ALIGNMENT, nothrow, COLD))
TAKES(call_new_array_aligned_nothrow_cold, operator new[](size, ALIGNMENT, nothrow, COLD))

// A form of new with every form of delete that fits it; the alignment of what is kept is not told when it is freed.
struct pair {
    struct block (*take)(std::size_t size);
    release_function give;
    bool aligned = false;
};

// What libstdc++'s aligned operators make of a size before they ask for it, and what is then on the ledger.
std::size_t rounded(const pair &pair, std::size_t size)
{
    auto alignment = pair.aligned ? static_cast<std::size_t>(ALIGNMENT) : 1;
    return (size + alignment - 1) / alignment * alignment;
}

const pair PAIRS[] = {
    {call_new, give_delete},
    {call_new, give_delete_sized},
    {call_new_array, give_delete_array},
    {call_new_array, give_delete_array_sized},
    {call_new_nothrow, give_delete_nothrow},
    {call_new_array_nothrow, give_delete_array_nothrow},
    {call_new_aligned, give_delete_aligned, true},
    {call_new_aligned, give_delete_sized_aligned, true},
    {call_new_array_aligned, give_delete_array_aligned, true},
    {call_new_array_aligned, give_delete_array_sized_aligned, true},
    {call_new_aligned_nothrow, give_delete_aligned_nothrow, true},
    {call_new_array_aligned_nothrow, give_delete_array_aligned_nothrow, true},
};

const pair HOT_COLD_PAIRS[] = {
    {call_new_cold, give_delete},
    {call_new_cold, give_delete_sized},
    {call_new_hot, give_delete_sized},
    {call_new_array_cold, give_delete_array_sized},
    {call_new_nothrow_cold, give_delete_nothrow},
    {call_new_array_nothrow_cold, give_delete_array_nothrow},
    {call_new_aligned_cold, give_delete_sized_aligned, true},
    {call_new_array_aligned_cold, give_delete_array_sized_aligned, true},
    {call_new_aligned_nothrow_cold, give_delete_aligned_nothrow, true},
    {call_new_array_aligned_nothrow_cold, give_delete_array_aligned_nothrow, true},
};

void work_in_pair(struct worker *worker, int round, const pair &pair)
{
    auto step = static_cast<std::size_t>(round);
    // Small ones, and ones of many pages.
    settle(worker, round, pair.take(rounded(pair, 8 + step * 24)), pair.give);
    settle(worker, round, pair.take(rounded(pair, 5000 + step * 9000)), pair.give);
}

void work(struct worker *worker)
{
    void *(*has_hot_cold)(std::size_t, __hot_cold_t) = operator new;
    for (int round = 0; round < ROUNDS; round++) {
        for (const pair &pair : PAIRS)
            work_in_pair(worker, round, pair);
        if (has_hot_cold)
            for (const pair &pair : HOT_COLD_PAIRS)
                work_in_pair(worker, round, pair);
    }
    operator delete(nullptr);
    operator delete[](nullptr);
    operator delete(nullptr, ALIGNMENT);
}

// mimalloc, which Debian compiles as C, cannot throw and finds no new-handler: it calls abort() instead, as does Google's
// tcmalloc, which does not want to.
extern "C" __attribute__((weak)) int mi_version();
extern "C" __attribute__((weak)) void *TCMallocInternalNew(std::size_t);

// No sites: what they allocate is the exception.
KEEP void *throw_from_new() { return operator new(huge); }
KEEP void *throw_from_new_array() { return operator new[](huge); }
KEEP void *throw_from_new_aligned() { return operator new(huge, ALIGNMENT); }
KEEP void *throw_from_new_array_aligned() { return operator new[](huge, ALIGNMENT); }

long caught;

KEEP void catch_bad_alloc(void *(*throws)())
{
    try {
        struct block block = {throws(), 0, nullptr};
        if (block.address)
            fatal("a huge new did not fail");
    } catch (const std::bad_alloc &) {
        caught++;
    }
}

// libstdc++'s throw and catch what they throw, and so are no sites either.
KEEP void *fail_new_nothrow() { return operator new(huge, nothrow); }
KEEP void *fail_new_array_nothrow() { return operator new[](huge, nothrow); }
KEEP void *fail_new_aligned_nothrow() { return operator new(huge, ALIGNMENT, nothrow); }
KEEP void *fail_new_array_aligned_nothrow() { return operator new[](huge, ALIGNMENT, nothrow); }

// What the handler gives back, and the limit that it lifts.
struct block reserve;
struct rlimit unlimited;
long handled;

TAKES(call_new_reserve, operator new(size))

// Makes room once; the operator then tries again.
void make_room()
{
    handled++;
    give_delete(reserve);
    reserve.address = nullptr;
    if (setrlimit(RLIMIT_AS, &unlimited))
        fatal("cannot lift the limit");
    std::set_new_handler(nullptr);
}

// Does nothing once; the operator then fails again, and throws.
void give_up()
{
    handled++;
    std::set_new_handler(nullptr);
}

// The bytes of address space that there are.
std::size_t address_space_bytes()
{
    char line[64] = {};
    int file = open("/proc/self/statm", O_RDONLY);
    if (file < 0 || read(file, line, sizeof line - 1) <= 0 || close(file))
        fatal("cannot read /proc/self/statm");
    return strtoul(line, nullptr, 10) * 4096;
}

TAKES(call_new_handled, operator new(size))
TAKES(call_new_array_handled, operator new[](size))
TAKES(call_new_aligned_handled, operator new(size, ALIGNMENT))

// An allocation that succeeds when the handler has been called, and not before.
void succeed_with_handler(struct block (*take)(std::size_t size), std::size_t size)
{
    constexpr std::size_t ROOM = 16 << 20;
    reserve = call_new_reserve(100000);
    if (getrlimit(RLIMIT_AS, &unlimited))
        fatal("cannot read the limit");
    struct rlimit limit = unlimited;
    limit.rlim_cur = address_space_bytes() + ROOM;
    std::set_new_handler(make_room);
    if (setrlimit(RLIMIT_AS, &limit))
        fatal("cannot set a limit");
    give_delete(take(size));
    if (reserve.address)
        fatal("the handler was not called");
}

bool handlers_made_room;

void fail()
{
    const bool aborts = mi_version || TCMallocInternalNew;
    for (int round = 0; round < THROWS; round++) {
        if (!aborts) {
            catch_bad_alloc(throw_from_new);
            catch_bad_alloc(throw_from_new_array);
            catch_bad_alloc(throw_from_new_aligned);
            catch_bad_alloc(throw_from_new_array_aligned);
            std::set_new_handler(give_up);
            catch_bad_alloc(throw_from_new);
        }
        if (fail_new_nothrow() || fail_new_array_nothrow() || fail_new_aligned_nothrow() ||
            fail_new_array_aligned_nothrow())
            fatal("a huge new did not fail");
    }
    if (aborts)
        return;
    // Once, and each larger than those before together: allocators keep the address space of what was freed.
    if (!handlers_made_room) {
        handlers_made_room = true;
        succeed_with_handler(call_new_handled, std::size_t{600} << 20);
        succeed_with_handler(call_new_array_handled, std::size_t{1300} << 20);
        succeed_with_handler(call_new_aligned_handled, std::size_t{2800} << 20);
    }
}

void run(const char *)
{
    free_early();
    run_workers(work);
    fail();
}

// The command: prints how many exceptions were caught, and how often a handler was called.
void print_caught(const char *)
{
    say("caught %ld", caught);
    say("handled %ld", handled);
}

} // namespace

int main(int count, char **arguments)
{
    const struct command commands[] = {
        {"run", run},
        {"drop", drop},
        {"forget", forget},
        {"unknown", print_unknown},
        {"caught", print_caught},
        {nullptr, nullptr},
    };
    return serve_or_report(count, arguments, commands, run);
}
