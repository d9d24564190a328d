// bucket.cpp: several all-reduces in flight at once, used in the order in which they complete. As
// bucket.c, in C++, and with results instead of exceptions: it compiles with -fno-exceptions too.
//
//   unisono run -n 2 -- ./bucket
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>

#include <unisono.hpp>

namespace {

constexpr std::size_t buckets = 4;
constexpr std::size_t bucket_elements = std::size_t{1} << 16;

int fail(const char *call, const unisono::failure &failure)
{
    std::fprintf(stderr, "%s: %s: %s\n", call, failure.name(), failure.text().c_str());
    return 1;
}

int run(unisono::communicator &comm)
{
    auto memory = comm.try_allocate<float>(buckets * bucket_elements);
    if (!memory)
        return fail("allocate", memory.error());
    auto bucket = [&](std::size_t b) {
        return unisono::span<float>(memory->data() + b * bucket_elements, bucket_elements);
    };

    std::array<unisono::request, buckets> requests; // gone before the memory: they wait
    for (std::size_t b = 0; b < buckets; b++) {
        auto values = bucket(b);
        std::fill(values.begin(), values.end(), static_cast<float>(comm.rank()) + float(b));
        auto request = comm.try_iall_reduce(values, unisono::op::sum);
        if (!request)
            return fail("iall_reduce", request.error());
        requests[b] = *std::move(request);
    }

    std::size_t wrong = 0;
    const int world = comm.world_size();
    for (std::size_t done = 0; done < buckets; done++) {
        auto index = unisono::try_wait_any(requests);
        if (!index)
            return fail("wait_any", index.error());
        const std::size_t b = index->value();
        const auto expected = static_cast<float>(world * (world - 1) / 2 + world * int(b));
        for (float value : bucket(b))
            wrong += value != expected;
    }
    std::printf("rank %d of %d: %zu buckets, %zu wrong elements\n", comm.rank(), world, buckets,
                wrong);
    return wrong ? 1 : 0;
}

} // namespace

int main()
{
    auto comm = unisono::communicator::try_from_environment();
    return comm ? run(*comm) : fail("from_environment", comm.error());
}
