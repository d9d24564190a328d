// hello.cpp: the smallest program: every rank adds its part to a vector. As hello.c, in C++.
//
//   unisono run -n 2 -- ./hello
#include <array>
#include <cstdio>

#include <unisono.hpp>

int main()
try {
    auto comm = unisono::communicator::from_environment();
    std::array<float, 3> values{1.0f, static_cast<float>(comm.rank()), 0.5f};
    comm.all_reduce(values, unisono::op::sum);
    std::printf("rank %d of %d: %g %g %g\n", comm.rank(), comm.world_size(),
                static_cast<double>(values[0]), static_cast<double>(values[1]),
                static_cast<double>(values[2]));
    comm.destroy();
    return 0;
} catch (const unisono::error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
