// Throws and catches: std::bad_alloc from a `new` that cannot succeed, and an exception of its own through
// frames that have allocated. A profiler that rewrites return addresses would end this program.
//
// `run` prints how many it caught. The ledger's header is C, so this guest speaks the protocol itself.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#define KEEP __attribute__((noipa))

namespace {

constexpr int ROUNDS = 10000;

volatile std::size_t huge = static_cast<std::size_t>(1) << 62;
long caught_bad_alloc, caught_own;
std::vector<char *> kept;

KEEP char *new_huge() { return new char[huge]; }

KEEP void throws_after_allocating(int depth)
{
    auto block = std::make_unique<char[]>(100);
    block[0] = static_cast<char>(depth);
    if (depth == 0)
        throw std::runtime_error(std::string(100, 'x'));
    throws_after_allocating(depth - 1);
}

KEEP void run()
{
    for (int round = 0; round < ROUNDS; round++) {
        try {
            kept.push_back(new_huge());
        } catch (const std::bad_alloc &) {
            caught_bad_alloc++;
        }
        try {
            throws_after_allocating(10);
        } catch (const std::runtime_error &error) {
            if (std::strlen(error.what()) == 100)
                caught_own++;
        }
    }
}

} // namespace

int main()
{
    char line[64];
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    std::puts("ready");
    while (std::fgets(line, sizeof line, stdin)) {
        if (!std::strcmp(line, "exit\n"))
            break;
        if (std::strcmp(line, "run\n"))
            return 3;
        run();
        std::printf("caught %ld %ld\n", caught_bad_alloc, caught_own);
        std::puts("done");
    }
    std::puts("done");
    return 0;
}
