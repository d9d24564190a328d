// hpp.cpp: every function of unisono.hpp, called once with data whose result is known. Runs under a
// launcher on any number of ranks; prints one line and returns 0 where all is right. Compiles with
// and without exceptions, as C++17 and later.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include <unisono.hpp>

namespace {

using unisono::communicator;
using unisono::op;
using numbers = std::vector<std::uint64_t>;
using values = std::vector<std::int32_t>;

int checks = 0, failures = 0;

void expect(bool good, const char *what)
{
    checks++;
    if (!good) {
        failures++;
        std::fprintf(stderr, "wrong: %s\n", what);
    }
}

template <class T>
void expect_ok(const unisono::result<T> &outcome, const char *what)
{
    expect(outcome.has_value(), what);
    if (!outcome)
        std::fprintf(stderr, "  %s\n", outcome.error().text().c_str());
}

/* 10 * rank, 10 * rank + 1, ... */
values own(int rank, std::size_t count)
{
    values made(count);
    std::iota(made.begin(), made.end(), 10 * rank);
    return made;
}

/* own() of every rank, one after the other. */
values joined(int world, std::size_t count)
{
    values all;
    for (int rank = 0; rank < world; rank++)
        for (int value : own(rank, count))
            all.push_back(value);
    return all;
}

/* The sum of own() over the ranks. */
values summed(int world, std::size_t count)
{
    values sum(count, 5 * world * (world - 1));
    for (std::size_t i = 0; i < count; i++)
        sum[i] += static_cast<int>(i) * world;
    return sum;
}

void check_types()
{
    static_assert(unisono::dtype_of<signed char> == UNISONO_I8);
    static_assert(unisono::dtype_of<std::uint8_t> == UNISONO_U8);
    static_assert(unisono::dtype_of<std::int16_t> == UNISONO_I16);
    static_assert(unisono::dtype_of<std::uint16_t> == UNISONO_U16);
    static_assert(unisono::dtype_of<std::int32_t> == UNISONO_I32);
    static_assert(unisono::dtype_of<const std::uint32_t> == UNISONO_U32);
    static_assert(unisono::dtype_of<long long> == UNISONO_I64);
    static_assert(unisono::dtype_of<std::uint64_t> == UNISONO_U64);
    static_assert(unisono::dtype_of<unisono::f16> == UNISONO_F16);
    static_assert(unisono::dtype_of<unisono::bf16> == UNISONO_BF16);
    static_assert(unisono::dtype_of<unisono::f8e4m3> == UNISONO_F8E4M3);
    static_assert(unisono::dtype_of<unisono::f8e5m2> == UNISONO_F8E5M2);
    static_assert(unisono::dtype_of<float> == UNISONO_F32);
    static_assert(unisono::dtype_of<double> == UNISONO_F64);
    static_assert(unisono::dtype_of<std::complex<float>> == UNISONO_COMPLEX64);
    static_assert(unisono::dtype_of<std::complex<double>> == UNISONO_COMPLEX128);
    static_assert(!std::is_copy_constructible_v<communicator>);
    static_assert(!std::is_copy_constructible_v<unisono::request>);
    static_assert(std::is_nothrow_move_constructible_v<communicator>);
    static_assert(std::is_nothrow_move_assignable_v<unisono::request>);
    static_assert(std::is_nothrow_copy_constructible_v<unisono::error>);
}

void check_reductions(communicator &comm)
{
    const int rank = comm.rank(), world = comm.world_size();
    const auto ranks = static_cast<std::size_t>(world);
    const values mine = own(rank, 2 * ranks), sum = summed(world, 2 * ranks);
    const auto first = sum.begin() + 2 * rank;
    const values my_block(first, first + 2);
    values all(mine.size()), block(2), in_place = mine;

    expect_ok(comm.try_all_reduce(mine, all, op::sum), "all_reduce");
    expect(all == sum, "the sum of all_reduce");
    expect_ok(comm.try_all_reduce(in_place, op::sum), "all_reduce in place");
    expect(in_place == sum, "the sum of all_reduce in place");
    expect_ok(comm.try_reduce(mine, all, op::max, 0), "reduce");
    expect(rank != 0 || all == own(world - 1, 2 * ranks), "the maximum of reduce");
    in_place = mine;
    expect_ok(comm.try_reduce(in_place, op::sum, world - 1), "reduce in place");
    expect(rank != world - 1 || in_place == sum, "the sum of reduce in place");
    expect_ok(comm.try_reduce_scatter(mine, block, op::sum), "reduce_scatter");
    expect(block == my_block, "the block of reduce_scatter");
    in_place = mine;
    expect_ok(comm.try_reduce_scatter(in_place, op::sum), "reduce_scatter in place");
    expect(values(in_place.begin() + 2 * rank, in_place.begin() + 2 * rank + 2) == my_block,
           "the block of reduce_scatter in place");
    expect_ok(comm.try_reduce_scatter_v(mine, block, numbers(ranks, 2), op::sum),
              "reduce_scatter_v");
    expect(block == my_block, "the block of reduce_scatter_v");

    std::array<std::complex<float>, 2> complex{{{1.0f, 2.0f}, {3.0f, 4.0f}}};
    expect_ok(comm.try_all_reduce(complex, op::sum), "all_reduce of complex numbers");
    expect(complex[1] == std::complex<float>(3.0f * float(world), 4.0f * float(world)),
           "the sum of complex numbers");
    auto scaled = comm.try_make_pre_mul_sum<float>(0.5);
    expect_ok(scaled, "make_pre_mul_sum");
}

void check_moves(communicator &comm)
{
    const int rank = comm.rank(), world = comm.world_size();
    const auto ranks = static_cast<std::size_t>(world);
    const values mine = own(rank, 3), everything = joined(world, 3);
    values all(everything.size()), block(3);

    values told = own(rank, 5);
    expect_ok(comm.try_broadcast(told, world - 1), "broadcast");
    expect(told == own(world - 1, 5), "what broadcast told");
    expect_ok(comm.try_all_gather(mine, all), "all_gather");
    expect(all == everything, "what all_gather gathered");
    values in_place(all.size());
    std::copy(mine.begin(), mine.end(), in_place.begin() + 3 * rank);
    expect_ok(comm.try_all_gather(in_place), "all_gather in place");
    expect(in_place == everything, "what all_gather gathered in place");
    expect_ok(comm.try_gather(mine, all, 0), "gather");
    expect(rank != 0 || all == everything, "what gather gathered");
    expect_ok(comm.try_scatter(everything, block, 0), "scatter");
    expect(block == mine, "what scatter scattered");
    expect_ok(comm.try_all_to_all(everything, all), "all_to_all");
    expect(all[0] == 10 * rank && all[all.size() - 1] == 10 * rank + 2, "what all_to_all moved");
    in_place = everything;
    expect_ok(comm.try_all_to_all(in_place), "all_to_all in place");
    expect(in_place == all, "what all_to_all moved in place");

    const numbers sizes(ranks, 3);
    numbers places(ranks);
    for (std::size_t r = 0; r < ranks; r++)
        places[r] = 3 * r;
    expect_ok(comm.try_all_gather_v(mine, all, sizes), "all_gather_v");
    expect(all == everything, "what all_gather_v gathered");
    expect_ok(comm.try_gather_v(mine, all, sizes, places, 0), "gather_v");
    expect(rank != 0 || all == everything, "what gather_v gathered");
    expect_ok(comm.try_scatter_v(everything, sizes, places, block, 0), "scatter_v");
    expect(block == mine, "what scatter_v scattered");
    expect_ok(comm.try_all_to_all_v(everything, sizes, places, all, sizes, places),
              "all_to_all_v");
    expect(all == in_place, "what all_to_all_v moved");
    expect_ok(comm.try_barrier(), "barrier");
    const int next = (rank + 1) % world, before = (rank + world - 1) % world;
    expect_ok(comm.try_send_recv(mine, next, block, before), "send_recv");
    expect(block == own(before, 3), "what send_recv received");
    block.assign(3, 0);
    auto exchange = comm.try_isend_recv(mine, next, block, before);
    expect_ok(exchange, "isend_recv");
    expect_ok(exchange->try_wait(), "wait for isend_recv");
    expect(block == own(before, 3), "what isend_recv received");
    values again(3);
    auto sent = comm.try_isend(mine, next);
    auto received = comm.try_irecv(again, before);
    expect_ok(sent, "isend");
    expect_ok(received, "irecv");
    expect_ok(sent->try_wait(), "wait for isend");
    expect_ok(received->try_wait(), "wait for irecv");
    expect(again == block, "what irecv received");
}

void check_requests(communicator &comm)
{
    const int rank = comm.rank(), world = comm.world_size();
    auto memory = comm.try_allocate<std::int32_t>(6);
    expect_ok(memory, "allocate");
    if (!memory)
        return;
    std::fill(memory->begin(), memory->end(), rank + 1);
    const unisono::span<std::int32_t> low(memory->data(), 3), high(memory->data() + 3, 3);
    auto first = comm.try_iall_reduce(low, op::sum);
    auto second = comm.try_iall_reduce(high, op::max);
    expect_ok(first, "iall_reduce");
    expect_ok(second, "iall_reduce beside another");
    std::vector<unisono::request> requests;
    requests.push_back(*std::move(first));
    requests.push_back(*std::move(second));
    for (int i = 0; i < 2; i++) {
        auto index = unisono::try_wait_any(requests);
        expect(index && index->has_value(), "wait_any");
    }
    auto none = unisono::try_wait_any(requests);
    expect(none && !none->has_value(), "wait_any of nothing");
    expect(low[0] == world * (world + 1) / 2 && high[2] == world, "what the requests reduced");

    auto barrier = comm.try_ibarrier();
    expect_ok(barrier, "ibarrier");
    while (barrier && barrier->pending())
        expect_ok(barrier->try_test(), "test");
    auto waited = comm.try_ibroadcast(low, 0);
    expect_ok(waited, "ibroadcast");
    auto done = waited->try_wait(std::chrono::seconds(60));
    expect(done && *done && !waited->pending(), "wait");
    {
        auto unwatched = comm.try_iall_reduce(low, op::max); /* its destructor waits */
        expect_ok(unwatched, "iall_reduce left to its destructor");
    }
    auto group = unisono::group::try_start(comm);
    expect_ok(group, "group start");
    expect_ok(comm.try_all_reduce(low, op::max), "all_reduce in a group");
    expect_ok(comm.try_all_reduce(high, op::max), "all_reduce in a group");
    expect_ok(group->try_end(), "group end");
}

void check_misuse(communicator &comm)
{
    const auto ranks = static_cast<std::size_t>(comm.world_size());
    values three(3), more(3 * ranks + 1);
    expect(comm.try_all_reduce(three, more, op::sum).code() == UNISONO_INVALID_ARGUMENT,
           "sizes of all_reduce");
    expect(comm.try_all_gather(three, more).code() == UNISONO_INVALID_ARGUMENT,
           "sizes of all_gather");
    expect(comm.try_all_gather_v(three, more, numbers(ranks + 1, 3)).code() ==
               UNISONO_INVALID_ARGUMENT,
           "number of counts");
    expect(comm.try_all_gather_v(three, three, numbers(ranks, 4)).code() ==
               UNISONO_INVALID_ARGUMENT,
           "counts beyond the buffer");
    communicator null;
    expect(!null && !null.try_barrier(), "a call on a null communicator");
#ifndef UNISONO_NO_EXCEPTIONS
    try {
        comm.all_reduce(three, more, op::sum);
        expect(false, "an exception");
    } catch (const unisono::error &error) {
        expect(error.code() == UNISONO_INVALID_ARGUMENT && error.what()[0] != '\0',
               "the exception's code and text");
    }
#endif
}

#ifndef UNISONO_NO_EXCEPTIONS
void check_throwing(communicator &comm)
{
    const int world = comm.world_size();
    values ones(4, 1);
    comm.all_reduce(ones, op::sum);
    expect(ones == values(4, world), "all_reduce, throwing");
    comm.register_memory(ones.data(), 4 * sizeof ones[0]);
    comm.all_reduce(ones, op::max);
    comm.deregister_memory(ones.data());
    expect(!comm.try_deregister_memory(ones.data()), "deregister what is not registered");
    unisono::request request = comm.iall_reduce(ones, op::max);
    expect(request.wait() && request.test(), "wait, throwing");
    auto memory = comm.allocate<unisono::bf16>(8);
    comm.broadcast(memory, 0);
    auto group = unisono::group::start(comm);
    comm.all_reduce(ones, op::max);
    group.iend().wait();
    communicator half = comm.split(comm.rank() % 2, comm.rank());
    expect(static_cast<bool>(half), "split");
    half.destroy();
    expect(!comm.split(-1), "split of a rank that stays out");
    comm.barrier();
}
#endif

} // namespace

int main()
{
    unisono::config settings;
    settings.name = "hpp";
    settings.deterministic = true;
    check_types();
    auto comm = communicator::try_from_environment(settings);
    if (!comm) {
        std::fprintf(stderr, "from_environment: %s\n", comm.error().text().c_str());
        return 1;
    }
    check_reductions(*comm);
    check_moves(*comm);
    check_requests(*comm);
    check_misuse(*comm);
#ifndef UNISONO_NO_EXCEPTIONS
    check_throwing(*comm);
#endif
    const int rank = comm->rank();
    expect_ok(comm->try_destroy(), "destroy");

    auto id = unisono::unique_id::try_create();
    expect_ok(id, "unique_id");
    auto threads = communicator::try_for_threads(1);
    expect_ok(threads, "for_threads");
    expect(threads && threads->size() == 1 && threads->front().world_size() == 1, "its world");
    std::printf("rank %d: %d checks, %d wrong\n", rank, checks, failures);
    return failures ? 1 : 0;
}
