// Allocates as C++ does: in containers that are inlined into their users, below virtual calls, in destructors that
// run while an exception passes, and in a catch.
//
// A site here is a function with a scope. The program's own operator new puts a header before each block that says
// which scope it was allocated in, so that whoever frees it knows whose it was; the header counts.
#include "ledger.h"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct alignas(16) header {
    struct site *site;
    std::size_t size;
};

struct site *current;

// What allocates from here to the end of the block does so for a site.
class scope {
public:
    explicit scope(struct site &site) : outer(current) { current = &site; }
    ~scope() { current = outer; }
    scope(const scope &) = delete;
    scope &operator=(const scope &) = delete;

private:
    struct site *outer;
};

} // namespace

void *operator new(std::size_t size)
{
    size += sizeof(header);
    auto *block = static_cast<header *>(std::malloc(size));
    if (!block)
        fatal("out of memory");
    *block = { current, size };
    if (current)
        took(current, block, size);
    return block + 1;
}

void operator delete(void *address) noexcept
{
    if (!address)
        return;
    header *block = static_cast<header *>(address) - 1;
    if (block->site)
        gave({ block, block->size, block->site });
    std::free(block);
}

void operator delete(void *address, std::size_t) noexcept { operator delete(address); }

namespace {

constexpr int ROUNDS = 50;

using table = std::map<std::string, std::vector<int>>;

table kept;

SITE(fill_vector);
CHAIN(fill_vector, "fill_vector run main");
KEEP void fill_vector(std::vector<int> &values, int round)
{
    scope scope(fill_vector_site);
    for (int value = 0; value < 50 + round; value++)
        values.push_back(value);
}

SITE(insert_into_map);
CHAIN(insert_into_map, "insert_into_map run main");
KEEP void insert_into_map(std::vector<int> &&values, int round)
{
    scope scope(insert_into_map_site);
    kept["a key too long for the string itself: " + std::to_string(round % 10)] = std::move(values);
}

struct shape {
    virtual ~shape() = default;
    virtual std::string name(int round) const = 0;
};

SITE(name_of_circle);
CHAIN(name_of_circle, "name_of_circle name describe run main");
KEEP std::string name_of_circle(int round)
{
    scope scope(name_of_circle_site);
    return std::string(static_cast<std::size_t>(40 + round), 'o');
}

SITE(name_of_square);
CHAIN(name_of_square, "name_of_square name describe run main");
KEEP std::string name_of_square(int round)
{
    scope scope(name_of_square_site);
    return std::string(static_cast<std::size_t>(60 + round), '#') + ", a square";
}

struct circle final : shape {
    std::string name(int round) const override { return name_of_circle(round); }
};

struct square final : shape {
    std::string name(int round) const override { return name_of_square(round); }
};

KEEP std::size_t describe(const shape &shape, int round) { return shape.name(round).size(); }

SITE(allocate_while_unwinding);
CHAIN(allocate_while_unwinding, "allocate_while_unwinding risky run main");
KEEP void allocate_while_unwinding(int round)
{
    scope scope(allocate_while_unwinding_site);
    std::vector<char> scratch(static_cast<std::size_t>(100 + round));
    *const_cast<volatile char *>(scratch.data()) = 1;
}

// Its destructor is called by the exception's own unwinding, from a landing pad of `risky`.
struct guard {
    int round;
    ~guard() { allocate_while_unwinding(round); }
};

KEEP int thrower(int round)
{
    if (round % 2)
        throw std::runtime_error("the round is odd, and this text is too long for a string without a block");
    return round;
}

KEEP int risky(int round)
{
    guard guard { round };
    return thrower(round) + 1;
}

SITE(allocate_in_catch);
CHAIN(allocate_in_catch, "allocate_in_catch run main");
KEEP std::unique_ptr<int[]> allocate_in_catch(int round)
{
    scope scope(allocate_in_catch_site);
    return std::make_unique<int[]>(static_cast<std::size_t>(30 + round));
}

KEEP void run(const char *)
{
    circle a_circle;
    square a_square;
    for (int round = 0; round < ROUNDS; round++) {
        std::vector<int> values;
        fill_vector(values, round);
        insert_into_map(std::move(values), round);
        const shape &shape = round % 3 ? static_cast<const struct shape &>(a_circle) : a_square;
        if (describe(shape, round) < 40)
            fatal("the name is too short");
        try {
            if (risky(round) != round + 1)
                fatal("lost count");
        } catch (const std::runtime_error &error) {
            auto block = allocate_in_catch(round);
            block[0] = error.what()[0];
        }
    }
}

} // namespace

int main()
{
    const struct command commands[] = { { "run", run }, { nullptr, nullptr } };
    serve(commands);
    return 0;
}
