// A stand-in for NCCL: carries out its calls on host memory, for tests on machines without a GPU.
//
// Ranks are threads or processes of one host. They meet over a file of shared memory in TMPDIR that
// is named by the unique id, and removed once all have opened it. A rank shows the others what it
// does and where its buffers are, and reads theirs: memcpy in one process, process_vm_readv between
// two. Nothing is checked between ranks that NCCL does not check: calls that differ hang.
//
// Work is done in the order of the stream, if the library that UNISONO_CUDA_LIB names is there to
// run host functions; without it at once, on the calling thread. A call waits for all ranks, or for
// the communicator's abort. Reductions go by rank, halves and 8-bit floats in float, and round
// once; a NaN wins in min and max. The first launch of a non-blocking communicator goes on by
// itself, as NCCL's does.
//
//   STANDIN_NCCL_VERSION=22105              what ncclGetVersion says, and what follows from it
//   STANDIN_NCCL_FAIL=ncclAllReduce:3:2     the third call returns 2; several with commas
//   STANDIN_NCCL_ASYNC=1:2:6                rank 1's second launch on a communicator never ends,
//                                           and ncclCommGetAsyncError says 6
//   STANDIN_NCCL_HANG=ncclCommInitRankConfig   what that call begins never ends; with commas:
//                                           ncclCommFinalize, ncclCommSplit and the like
//   STANDIN_NCCL_LEAKS=path                 what is left at exit, a line for each process
//   STANDIN_NCCL_DEVICE=0                   every rank's device, where there is no CUDA

extern "C" {
#include "nccl.h"
}

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

namespace {

// Settings and faults -----------------------------------------------------------------------------

std::string setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

std::vector<std::string> parts(const std::string &text, char mark) {
    std::vector<std::string> found;
    for (size_t at = 0; at < text.size();) {
        size_t end = std::min(text.find(mark, at), text.size());
        found.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return found;
}

int version() {
    std::string value = setting("STANDIN_NCCL_VERSION");
    return value.empty() ? 23007 : atoi(value.c_str());
}

bool hangs(const char *call) {
    for (const std::string &name : parts(setting("STANDIN_NCCL_HANG"), ','))
        if (name == call) return true;
    return false;
}

std::mutex everything;
char last_error[1024];

ncclResult_t complain(ncclResult_t result, const std::string &why) {
    std::lock_guard<std::mutex> lock(everything);
    snprintf(last_error, sizeof last_error, "%s", why.c_str());
    return result;
}

/// What the nth call of a function is told to return.
ncclResult_t injected(const char *call) {
    static std::map<std::string, int> calls;
    int count;
    {
        std::lock_guard<std::mutex> lock(everything);
        count = ++calls[call];
    }
    for (const std::string &fault : parts(setting("STANDIN_NCCL_FAIL"), ',')) {
        std::vector<std::string> words = parts(fault, ':');
        if (words.size() == 3 && words[0] == call && atoi(words[1].c_str()) == count)
            return complain(ncclResult_t(atoi(words[2].c_str())),
                            "a fault that the test asked for");
    }
    return ncclSuccess;
}

#define ENTER(call)                                                                                \
    if (ncclResult_t bad = injected(#call)) return bad
#define CHECK(what)                                                                                \
    if (ncclResult_t bad = (what)) return bad

struct Counts {
    std::atomic<int> comms{0}, registrations{0}, windows{0}, ops{0}, memory{0};
    ~Counts() {
        std::string path = setting("STANDIN_NCCL_LEAKS");
        FILE *file = path.empty() ? nullptr : fopen(path.c_str(), "a");
        if (!file) return;
        fprintf(file, "comms=%d registrations=%d windows=%d ops=%d memory=%d\n", comms.load(),
                registrations.load(), windows.load(), ops.load(), memory.load());
        fclose(file);
    }
} counts;

// CUDA's driver, if there is one ------------------------------------------------------------------

struct Cuda {
    int (*launch)(cudaStream_t, void (*)(void *), void *) = nullptr;
    int (*capturing)(cudaStream_t, int *) = nullptr;
    int (*device)(int *) = nullptr;
    int (*uuid)(char *, int) = nullptr;
    int (*current)(void **) = nullptr;
    int (*make_current)(void *) = nullptr;
    int (*attributes)(unsigned, int *, void **, unsigned long long) = nullptr;

    Cuda() {
        std::string name = setting("UNISONO_CUDA_LIB");
        void *library = name.empty() ? nullptr : dlopen(name.c_str(), RTLD_NOW | RTLD_NODELETE);
        if (!library) return;
        find(library, launch, "cuLaunchHostFunc");
        find(library, capturing, "cuStreamIsCapturing");
        find(library, device, "cuCtxGetDevice");
        find(library, uuid, "cuDeviceGetUuid_v2");
        find(library, current, "cuCtxGetCurrent");
        find(library, make_current, "cuCtxSetCurrent");
        find(library, attributes, "cuPointerGetAttributes");
    }

    template <class F> static void find(void *library, F &function, const char *name) {
        function = reinterpret_cast<F>(dlsym(library, name));
    }

    /// Whether CUDA knows the memory; without CUDA, whatever is given.
    bool knows(const void *at) const {
        if (!attributes || !at) return true;
        int wanted = 2; // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        unsigned kind = 0;
        void *place = &kind;
        return attributes(1, &wanted, &place, reinterpret_cast<uintptr_t>(at)) == 0 && kind != 0;
    }
};

const Cuda &cuda() {
    static const Cuda found;
    return found;
}

// What ranks share --------------------------------------------------------------------------------

constexpr int RANKS_MAX = 64;

enum Kind { AllReduce, Reduce, Broadcast, AllGather, ReduceScatter, AlltoAll, Gather, Scatter, Send,
            Recv };

/// What a rank does, and where.
struct Item {
    Kind kind;
    int type, op, root;
    uint64_t count;
    const void *send;
    void *recv;
    /// The factor of an operation with one, or where it lies.
    unsigned char scalar[8];
    const void *scalar_at;
};

struct Row {
    std::atomic<int> here;
    int pid;
    char device[16];
    /// The collective this rank is in, and the one whose buffers it has read.
    std::atomic<uint64_t> posted, read;
    Item item;
    /// The same of what is told outside of streams.
    std::atomic<uint64_t> told, heard;
    int words[2];
};

struct Message {
    std::atomic<uint64_t> sent, taken;
    const void *at;
    uint64_t count;
    int type;
};

struct Segment {
    std::atomic<int> opened;
    Row rows[RANKS_MAX];
    /// From the first index to the second.
    Message messages[RANKS_MAX][RANKS_MAX];
};

uint64_t mixed(uint64_t seed, const std::string &text) {
    for (unsigned char c : text) seed = (seed ^ c) * 0x100000001b3u;
    return seed;
}

/// The name of the meeting place that ranks of one come to by the same words.
std::string derived(const std::string &name, const std::string &words) {
    char text[40];
    snprintf(text, sizeof text, "%016llx%016llx",
             static_cast<unsigned long long>(mixed(0xcbf29ce484222325u, name + words)),
             static_cast<unsigned long long>(mixed(0x9ae16a3b2f90404fu, words + name)));
    return text;
}

} // namespace

// A communicator ----------------------------------------------------------------------------------

struct ncclComm : std::enable_shared_from_this<ncclComm> {
    std::string name;
    int rank = 0, ranks = 0, device = 0;
    bool blocking = true, finalized = false, revoked = false, launched = false;
    Segment *segment = nullptr;
    std::atomic<int> state{ncclInProgress};
    /// What runs here ends.
    std::atomic<bool> quit{false};
    /// Batches that are enqueued, and those that run.
    std::atomic<int> enqueued{0}, running{0};
    std::atomic<uint64_t> tickets{0}, done{0};
    uint64_t collectives = 0, exchanges = 0, children = 0, grown = 0, launches = 0;
    std::thread worker;
    struct Op {
        int type;
        Item scalar;
    };
    std::map<int, Op> ops;
    std::set<void *> registrations;
    std::atomic<int> registered{0}; // of them, those that are no windows

    ~ncclComm() {
        if (segment) munmap(segment, sizeof *segment);
    }

    std::string path() const {
        std::string folder = setting("TMPDIR");
        return (folder.empty() ? "/tmp" : folder) + "/standin-nccl-" + name;
    }

    /// Waits until something holds; false if this rank has quit before.
    bool wait(const std::function<bool()> &holds) const {
        for (int round = 0; !holds(); round++) {
            if (quit) return false;
            if (round < 200) std::this_thread::yield();
            else usleep(100);
        }
        return true;
    }

    void hang() const {
        wait([] { return false; });
    }

    /// Does something on a thread of its own; the state says when it is done.
    void begin(std::function<ncclResult_t()> work) {
        if (worker.joinable()) worker.join();
        state = ncclInProgress;
        void *context = nullptr;
        if (cuda().current) cuda().current(&context);
        worker = std::thread([this, work, context] {
            if (context && cuda().make_current) cuda().make_current(context);
            state = work();
        });
    }

    /// What a call returns that has begun something.
    ncclResult_t begun() {
        if (blocking && worker.joinable()) worker.join();
        return ncclResult_t(state.load());
    }

    ncclResult_t meet();
    bool exchange(int a, int b, std::vector<std::pair<int, int>> &all);
    bool read(int peer, const void *from, void *to, size_t bytes);
    void collective(const Item &item);
    void messages(const std::vector<Item> &items);
};

namespace {

/// Those that are left when the process ends are left alone: threads may be in them.
std::map<ncclComm_t, std::shared_ptr<ncclComm>> &comms =
    *new std::map<ncclComm_t, std::shared_ptr<ncclComm>>;

std::shared_ptr<ncclComm> known(ncclComm_t comm) {
    std::lock_guard<std::mutex> lock(everything);
    auto found = comms.find(comm);
    return found == comms.end() ? nullptr : found->second;
}

ncclComm_t publish(const std::shared_ptr<ncclComm> &comm) {
    std::lock_guard<std::mutex> lock(everything);
    comms[comm.get()] = comm;
    counts.comms++;
    return comm.get();
}

void forget(ncclComm_t comm) {
    std::lock_guard<std::mutex> lock(everything);
    if (comms.erase(comm)) counts.comms--;
}

/// The thread's open group: what is to be launched, and what to wait for.
struct Batch {
    std::shared_ptr<ncclComm> comm;
    cudaStream_t stream;
    std::vector<Item> items;
    uint64_t ticket = 0;
    bool captured = false;
    /// It never ends, and this is what is wrong.
    ncclResult_t fault = ncclSuccess;
};

struct Group {
    int depth = 0;
    ncclResult_t bad = ncclSuccess;
    std::vector<std::unique_ptr<Batch>> batches;
    std::vector<std::shared_ptr<ncclComm>> begun;
};
thread_local Group group;

} // namespace

ncclResult_t ncclComm::meet() {
    int fd = open(path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Segment)) != 0)
        return complain(ncclSystemError, "no shared memory at " + path());
    void *at = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) return complain(ncclSystemError, "no shared memory at " + path());
    segment = static_cast<Segment *>(at);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    Row &mine = segment->rows[rank];
    mine.pid = getpid();
    memset(mine.device, 0, sizeof mine.device);
    memcpy(mine.device, &device, sizeof device);
    if (cuda().uuid) cuda().uuid(mine.device, device);
    mine.here = 1;
    if (++segment->opened == ranks) unlink(path().c_str());
    bool all = wait([this] {
        for (int peer = 0; peer < ranks; peer++)
            if (!segment->rows[peer].here) return false;
        return true;
    });
    if (!all) {
        unlink(path().c_str());
        return ncclInternalError;
    }
    bool may_share = version() >= 23003 && setting("NCCL_MULTI_RANK_GPU_ENABLE") == "1";
    for (int a = 0; a < ranks; a++)
        for (int b = 0; b < a; b++)
            if (!may_share && memcmp(segment->rows[a].device, segment->rows[b].device, 16) == 0) {
                std::string old = "Duplicate GPU detected : rank " + std::to_string(b) +
                                  " and rank " + std::to_string(a);
                bool newer = version() >= 23003;
                return complain(ncclInvalidUsage,
                                newer ? "Multiple Ranks are using the same GPU/Partition" : old);
            }
    return ncclSuccess;
}

/// Tells all ranks two numbers, and hears theirs.
bool ncclComm::exchange(int a, int b, std::vector<std::pair<int, int>> &all) {
    uint64_t turn = ++exchanges;
    Row &mine = segment->rows[rank];
    mine.words[0] = a;
    mine.words[1] = b;
    mine.told = turn;
    for (int peer = 0; peer < ranks; peer++) {
        Row &row = segment->rows[peer];
        if (!wait([&] { return row.told >= turn; })) return false;
        all.emplace_back(row.words[0], row.words[1]);
    }
    mine.heard = turn;
    for (int peer = 0; peer < ranks; peer++)
        if (!wait([&] { return segment->rows[peer].heard >= turn; })) return false;
    return true;
}

/// Copies from a rank's memory. Where that is gone, the communicator fails and the stream hangs.
bool ncclComm::read(int peer, const void *from, void *to, size_t bytes) {
    const Row &row = segment->rows[peer];
    if (row.pid == getpid()) {
        if (bytes) memcpy(to, from, bytes);
        return true;
    }
    for (size_t have = 0; have < bytes;) {
        iovec here = {static_cast<char *>(to) + have, bytes - have};
        iovec there = {static_cast<char *>(const_cast<void *>(from)) + have, bytes - have};
        ssize_t got = process_vm_readv(row.pid, &here, 1, &there, 1, 0);
        if (got <= 0) {
            state = complain(ncclRemoteError, "memory of rank " + std::to_string(peer) +
                                                  " cannot be read");
            hang();
            return false;
        }
        have += size_t(got);
    }
    return true;
}

// Arithmetic --------------------------------------------------------------------------------------

namespace {

size_t bytes_of(int type) {
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return bytes[type];
}

/// A format of small floats.
struct Small {
    int exponent, mantissa, bias;
    /// No infinities: the largest exponent has numbers too, and too large a number stays finite.
    bool finite, saturates;
    uint32_t nan;
    double largest;
};
const Small HALF = {5, 10, 15, false, false, 0x7e00, 65504};
const Small BFLOAT = {8, 7, 127, false, false, 0x7fc0, 3.3895313892515355e38};
const Small E4M3 = {4, 3, 7, true, true, 0x7f, 448};
const Small E5M2 = {5, 2, 15, false, true, 0x7f, 57344};

float decoded(uint32_t bits, const Small &of) {
    uint32_t exponent = (bits >> of.mantissa) & ((1u << of.exponent) - 1);
    uint32_t mantissa = bits & ((1u << of.mantissa) - 1);
    bool negative = (bits >> (of.exponent + of.mantissa)) & 1;
    bool top = exponent == (1u << of.exponent) - 1;
    double value;
    if (top && (of.finite ? mantissa == (1u << of.mantissa) - 1 : mantissa != 0))
        value = std::numeric_limits<double>::quiet_NaN();
    else if (top && !of.finite)
        value = std::numeric_limits<double>::infinity();
    else if (exponent == 0)
        value = std::ldexp(mantissa, 1 - of.bias - of.mantissa);
    else
        value = std::ldexp(mantissa + (1u << of.mantissa), int(exponent) - of.bias - of.mantissa);
    return float(negative ? -value : value);
}

uint32_t encoded(float number, const Small &of) {
    if (std::isnan(number)) return of.nan;
    uint32_t sign = (std::signbit(number) ? 1u : 0u) << (of.exponent + of.mantissa);
    uint32_t infinity = ((1u << of.exponent) - 1) << of.mantissa;
    double value = std::fabs(double(number));
    int least = 1 - of.bias;
    if (!std::isinf(value) && value != 0) {
        double unit = std::ldexp(1, std::max(std::ilogb(value), least) - of.mantissa);
        value = std::nearbyint(value / unit) * unit;
    }
    if (value > of.largest) {
        if (!of.saturates) return sign | infinity;
        value = of.largest;
    }
    if (value == 0) return sign;
    int exponent = std::max(std::ilogb(value), least);
    uint32_t mantissa = uint32_t(std::ldexp(value, of.mantissa - exponent));
    // The leading one of a normal number adds one to the exponent.
    return sign | ((uint32_t(exponent + of.bias - 1) << of.mantissa) + mantissa);
}

template <class T> struct Plain {
    using Wide = T;
    static Wide load(const void *at) {
        T value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    static void store(void *at, Wide value) {
        if constexpr (std::is_floating_point_v<T>)
            if (std::isnan(value)) value = std::numeric_limits<T>::quiet_NaN();
        memcpy(at, &value, sizeof value);
    }
};

template <class Bits, const Small &OF> struct Narrow {
    using Wide = float;
    static Wide load(const void *at) {
        Bits bits;
        memcpy(&bits, at, sizeof bits);
        return decoded(bits, OF);
    }
    static void store(void *at, Wide value) {
        Bits bits = Bits(encoded(value, OF));
        memcpy(at, &bits, sizeof bits);
    }
};

template <class W> W plus(W a, W b) {
    if constexpr (std::is_integral_v<W>) return W(uint64_t(a) + uint64_t(b));
    else return a + b;
}

template <class W> W times(W a, W b) {
    if constexpr (std::is_integral_v<W>) return W(uint64_t(a) * uint64_t(b));
    else return a * b;
}

/// The smaller, or the larger; a NaN wins, and -0 is below +0.
template <class W> W extreme(W a, W b, bool larger) {
    if constexpr (std::is_floating_point_v<W>) {
        if (std::isnan(a)) return a;
        if (std::isnan(b)) return b;
        if (a == b) return (std::signbit(a) == larger) ? b : a;
    }
    return (a < b) == larger ? b : a;
}

/// Reduces one block of every rank, which lie one after the other.
template <class C>
void reduce_as(const std::vector<Item> &items, const std::vector<char> &blocks, char *out) {
    using W = typename C::Wide;
    const Item &first = items[0];
    size_t bytes = bytes_of(first.type), ranks = items.size();
    bool scaled = first.op > ncclAvg;
    for (uint64_t i = 0; i < first.count; i++) {
        W sum{};
        for (size_t rank = 0; rank < ranks; rank++) {
            W value = C::load(&blocks[(rank * first.count + i) * bytes]);
            if (scaled) value = times(value, C::load(items[rank].scalar));
            if (rank == 0) sum = value;
            else if (first.op == ncclProd) sum = times(sum, value);
            else if (first.op == ncclMax || first.op == ncclMin)
                sum = extreme(sum, value, first.op == ncclMax);
            else sum = plus(sum, value);
        }
        if (first.op == ncclAvg) sum = W(sum / W(ranks));
        C::store(out + i * bytes, sum);
    }
}

void reduce(const std::vector<Item> &items, const std::vector<char> &blocks, char *out) {
    switch (items[0].type) {
    case ncclInt8: return reduce_as<Plain<int8_t>>(items, blocks, out);
    case ncclUint8: return reduce_as<Plain<uint8_t>>(items, blocks, out);
    case ncclInt32: return reduce_as<Plain<int32_t>>(items, blocks, out);
    case ncclUint32: return reduce_as<Plain<uint32_t>>(items, blocks, out);
    case ncclInt64: return reduce_as<Plain<int64_t>>(items, blocks, out);
    case ncclUint64: return reduce_as<Plain<uint64_t>>(items, blocks, out);
    case ncclFloat32: return reduce_as<Plain<float>>(items, blocks, out);
    case ncclFloat64: return reduce_as<Plain<double>>(items, blocks, out);
    case ncclFloat16: return reduce_as<Narrow<uint16_t, HALF>>(items, blocks, out);
    case ncclBfloat16: return reduce_as<Narrow<uint16_t, BFLOAT>>(items, blocks, out);
    case ncclFloat8e4m3: return reduce_as<Narrow<uint8_t, E4M3>>(items, blocks, out);
    default: return reduce_as<Narrow<uint8_t, E5M2>>(items, blocks, out);
    }
}

bool same(const Item &a, const Item &b) {
    bool same_op = a.op == b.op || (a.op > ncclAvg && b.op > ncclAvg);
    return same_op && a.kind == b.kind && a.type == b.type && a.count == b.count &&
           a.root == b.root;
}

} // namespace

// What runs on a stream ---------------------------------------------------------------------------

/// Nobody leaves a collective before all have read what they need: outputs are written last.
void ncclComm::collective(const Item &item) {
    Row &mine = segment->rows[rank];
    uint64_t turn = ++collectives;
    mine.item = item;
    if (item.scalar_at) memcpy(mine.item.scalar, item.scalar_at, bytes_of(item.type));
    mine.posted = turn;
    std::vector<Item> items;
    for (int peer = 0; peer < ranks; peer++) {
        Row &row = segment->rows[peer];
        if (!wait([&] { return row.posted >= turn; })) return;
        items.push_back(row.item);
    }
    for (const Item &other : items)
        if (!same(other, item)) return hang();
    size_t block = item.count * bytes_of(item.type);
    bool is_root = rank == item.root;
    // Which block of which rank is read.
    auto from = [&](int peer) { return static_cast<const char *>(items[peer].send); };
    std::vector<char> got(block * ranks);
    char *to = got.data();
    size_t bytes = 0;
    bool reduces = false;
    auto all = [&](size_t offset) {
        for (int peer = 0; peer < ranks; peer++)
            if (!read(peer, from(peer) + offset, to + block * peer, block)) return;
        bytes = block * ranks;
    };
    switch (item.kind) {
    case AllReduce: reduces = true; all(0); break;
    case Reduce: if (is_root) { reduces = true; all(0); } break;
    case ReduceScatter: reduces = true; all(block * rank); break;
    case AllGather: all(0); break;
    case AlltoAll: all(block * rank); break;
    case Gather: if (is_root) all(0); break;
    case Broadcast: if (read(item.root, from(item.root), to, block)) bytes = block; break;
    default: if (read(item.root, from(item.root) + block * rank, to, block)) bytes = block;
    }
    if (reduces && bytes) {
        std::vector<char> sums(block);
        reduce(items, got, sums.data());
        got = std::move(sums);
        bytes = block;
    }
    mine.read = turn;
    for (int peer = 0; peer < ranks; peer++)
        if (!wait([&] { return segment->rows[peer].read >= turn; })) return;
    if (bytes && !quit) memcpy(item.recv, got.data(), bytes);
}

/// Messages of a group go on side by side, those between two ranks in order.
void ncclComm::messages(const std::vector<Item> &items) {
    std::map<int, std::vector<Item>> sends, recvs;
    for (const Item &item : items) {
        if (item.kind == Send) sends[item.root].push_back(item);
        if (item.kind == Recv) recvs[item.root].push_back(item);
    }
    std::map<int, size_t> sent, taken, shown;
    wait([&] {
        bool busy = false;
        for (auto &[peer, list] : sends) {
            Message &message = segment->messages[rank][peer];
            size_t &next = sent[peer];
            if (next == list.size()) continue;
            busy = true;
            if (shown[peer] == next && message.taken == message.sent) {
                message.at = list[next].send;
                message.count = list[next].count;
                message.type = list[next].type;
                message.sent++;
                shown[peer]++;
            } else if (shown[peer] > next && message.taken == message.sent) {
                next++;
            }
        }
        for (auto &[peer, list] : recvs) {
            Message &message = segment->messages[peer][rank];
            size_t &next = taken[peer];
            if (next == list.size()) continue;
            busy = true;
            const Item &item = list[next];
            if (message.sent == message.taken) continue;
            if (message.count != item.count || message.type != item.type) continue;
            if (!read(peer, message.at, item.recv, item.count * bytes_of(item.type))) continue;
            message.taken++;
            next++;
        }
        return !busy;
    });
}

namespace {

void run(Batch &batch) {
    ncclComm &comm = *batch.comm;
    comm.running++;
    uint64_t ticket = batch.captured ? comm.tickets++ : batch.ticket;
    if (comm.wait([&] { return comm.done == ticket; }) && batch.fault != ncclSuccess) {
        comm.state = complain(batch.fault, "something the test asked for");
        comm.hang();
    }
    for (const Item &item : batch.items)
        if (!comm.quit && item.kind < Send) comm.collective(item);
    if (!comm.quit) comm.messages(batch.items);
    comm.done = ticket + 1;
    comm.running--;
}

void on_stream(void *data) {
    Batch *batch = static_cast<Batch *>(data);
    run(*batch);
    // A graph runs it again: it stays for good.
    if (batch->captured) return;
    batch->comm->enqueued--;
    delete batch;
}

ncclResult_t launch(std::unique_ptr<Batch> batch) {
    if (cuda().launch) {
        Batch *given = batch.release();
        if (cuda().launch(given->stream, on_stream, given) != 0)
            return complain(ncclUnhandledCudaError, "cuLaunchHostFunc has failed");
        return ncclSuccess;
    }
    on_stream(batch.release());
    return ncclSuccess;
}

/// Gives a batch its place in the order of its communicator, and its faults.
void number(Batch &batch) {
    ncclComm &comm = *batch.comm;
    int captured = 0;
    if (cuda().capturing) cuda().capturing(batch.stream, &captured);
    batch.captured = captured == 1;
    if (!batch.captured) {
        batch.ticket = comm.tickets++;
        comm.enqueued++;
    }
    comm.launches++;
    std::vector<std::string> words = parts(setting("STANDIN_NCCL_ASYNC"), ':');
    if (words.size() == 3 && atoi(words[0].c_str()) == comm.rank &&
        uint64_t(atoi(words[1].c_str())) == comm.launches)
        batch.fault = ncclResult_t(atoi(words[2].c_str()));
}

/// Launches a group. The first launch of a non-blocking communicator goes on by itself, as NCCL's
/// does, which connects its ranks then.
ncclResult_t launch_all(std::vector<std::unique_ptr<Batch>> batches) {
    ncclResult_t outcome = ncclSuccess;
    std::vector<std::thread> threads;
    std::vector<std::shared_ptr<ncclComm>> told;
    bool together = batches.size() > 1 && !cuda().launch;
    for (std::unique_ptr<Batch> &batch : batches) {
        std::shared_ptr<ncclComm> comm = batch->comm;
        number(*batch);
        told.push_back(comm);
        bool first = !comm->launched;
        comm->launched = true;
        if (batch->fault != ncclSuccess && !cuda().launch) {
            std::thread([b = batch.release()] { launch(std::unique_ptr<Batch>(b)); }).detach();
        } else if (!comm->blocking && first && !batch->captured && batch->fault == ncclSuccess) {
            Batch *given = batch.release();
            comm->begin([given] { return launch(std::unique_ptr<Batch>(given)); });
        } else if (together) {
            threads.emplace_back([b = batch.release()] { launch(std::unique_ptr<Batch>(b)); });
        } else if (ncclResult_t bad = launch(std::move(batch))) {
            outcome = bad;
        }
    }
    for (std::thread &thread : threads) thread.join();
    for (const std::shared_ptr<ncclComm> &comm : told)
        if (outcome == ncclSuccess && !comm->blocking) outcome = ncclResult_t(comm->state.load());
    return outcome;
}

ncclResult_t end_group() {
    Group done;
    std::swap(done.batches, group.batches);
    std::swap(done.begun, group.begun);
    std::swap(done.bad, group.bad);
    ncclResult_t outcome = done.bad;
    for (const std::shared_ptr<ncclComm> &comm : done.begun) {
        ncclResult_t state = comm->begun();
        if (outcome == ncclSuccess) outcome = state;
    }
    if (outcome != ncclSuccess && outcome != ncclInProgress) return outcome;
    ncclResult_t launched = launch_all(std::move(done.batches));
    return launched != ncclSuccess ? launched : outcome;
}

ncclResult_t in_group(ncclResult_t result) {
    if (group.depth > 0 && result != ncclInProgress && group.bad == ncclSuccess) group.bad = result;
    return result;
}

/// Whether a communicator takes calls.
ncclResult_t ready(const std::shared_ptr<ncclComm> &comm, const char *call) {
    if (!comm) return complain(ncclInvalidArgument, std::string(call) + " : no communicator");
    if (comm->state == ncclInProgress)
        return complain(ncclInvalidArgument, std::string(call) + " : it is not ready");
    return ncclResult_t(comm->state.load());
}

ncclResult_t checked(const char *call, const std::shared_ptr<ncclComm> &comm, Item &item) {
    auto refuse = [&](const char *why) {
        return complain(ncclInvalidArgument, std::string(call) + " : " + why);
    };
    CHECK(ready(comm, call));
    if (comm->revoked) return complain(ncclInvalidUsage, "the communicator was revoked");
    int types = version() >= 22403 ? 12 : 10;
    if (item.type < 0 || item.type >= types) return refuse("invalid type");
    if (item.root < 0 || item.root >= comm->ranks) return refuse("invalid root or peer");
    if (item.op > ncclAvg) {
        auto found = comm->ops.find(item.op);
        if (found == comm->ops.end()) return refuse("invalid reduction operation");
        if (found->second.type != item.type) return refuse("the operation is for another type");
        memcpy(item.scalar, found->second.scalar.scalar, sizeof item.scalar);
        item.scalar_at = found->second.scalar.scalar_at;
    } else if (item.op < 0) {
        return refuse("invalid reduction operation");
    }
    bool receives = item.kind != Send && !((item.kind == Reduce || item.kind == Gather) &&
                                           comm->rank != item.root);
    bool sends = item.kind != Recv && !((item.kind == Broadcast || item.kind == Scatter) &&
                                        comm->rank != item.root);
    if (item.count > 0 && ((sends && !cuda().knows(item.send)) ||
                           (receives && !cuda().knows(item.recv))))
        return refuse("a buffer is no memory of CUDA's");
    return ncclSuccess;
}

ncclResult_t enqueue(const char *call, ncclComm_t handle, cudaStream_t stream, Item item) {
    CHECK(in_group(injected(call)));
    std::shared_ptr<ncclComm> comm = known(handle);
    if (ncclResult_t bad = in_group(checked(call, comm, item))) {
        // As NCCL: what goes wrong in a call of a non-blocking communicator is its state for good,
        // but that it was revoked.
        if (comm && !comm->blocking && !comm->revoked && comm->state == ncclSuccess)
            comm->state = bad;
        return bad;
    }
    if (item.count == 0 && item.kind < Send) return ncclSuccess;
    std::unique_ptr<Batch> *place = nullptr;
    for (std::unique_ptr<Batch> &batch : group.batches)
        if (batch->comm == comm && batch->stream == stream) place = &batch;
    if (!place) {
        group.batches.push_back(std::make_unique<Batch>());
        place = &group.batches.back();
        (*place)->comm = comm;
        (*place)->stream = stream;
    }
    (*place)->items.push_back(item);
    return group.depth > 0 ? ncclSuccess : end_group();
}

Item collective(Kind kind, const void *send, void *recv, size_t count, int type, int op, int root) {
    return Item{kind, type, op, root, count, send, recv, {}, nullptr};
}

// Beginnings and ends -----------------------------------------------------------------------------

ncclResult_t configured(ncclComm &comm, const ncclConfig_t *config) {
    if (!config) return ncclSuccess;
    if (config->magic != NCCL_API_MAGIC || config->size < offsetof(ncclConfig_t, cgaClusterSize))
        return complain(ncclInvalidArgument, "the configuration is none");
    comm.blocking = config->blocking != 0;
    return ncclSuccess;
}

/// A communicator that has not met its ranks.
ncclResult_t made(std::shared_ptr<ncclComm> &comm, const std::string &name, int ranks, int rank,
                  const ncclConfig_t *config) {
    if (ranks < 1 || ranks > RANKS_MAX || rank < 0 || rank >= ranks)
        return complain(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " +
                                                 std::to_string(ranks));
    comm = std::make_shared<ncclComm>();
    CHECK(configured(*comm, config));
    comm->name = name;
    comm->ranks = ranks;
    comm->rank = comm->device = rank;
    std::string device = setting("STANDIN_NCCL_DEVICE");
    if (!device.empty()) comm->device = atoi(device.c_str());
    if (cuda().device && cuda().device(&comm->device) != 0)
        return complain(ncclUnhandledCudaError, "no context of CUDA is current");
    return ncclSuccess;
}

ncclResult_t result_of(const std::shared_ptr<ncclComm> &comm) {
    if (group.depth == 0) return comm->begun();
    group.begun.push_back(comm);
    return comm->blocking ? ncclSuccess : ncclInProgress;
}

std::string name_of(const ncclUniqueId &id) {
    return std::string(id.internal, strnlen(id.internal, sizeof id.internal));
}

ncclResult_t meet(const char *call, const std::shared_ptr<ncclComm> &comm, ncclComm_t *place) {
    *place = publish(comm);
    bool stuck = hangs(call);
    comm->begin([comm = comm.get(), stuck] {
        if (stuck) comm->hang();
        return comm->meet();
    });
    // Where it has failed already the handle stays, to be aborted.
    return result_of(comm);
}

/// Makes a child on the parent's thread; `who` says which meeting place, ranks and rank.
ncclResult_t bear(const char *call, const std::shared_ptr<ncclComm> &parent, ncclComm_t *place,
                  const ncclConfig_t *config,
                  std::function<bool(std::string &, int &, int &)> who) {
    *place = nullptr;
    std::shared_ptr<ncclComm> child = std::make_shared<ncclComm>();
    child->blocking = parent->blocking;
    CHECK(configured(*child, config));
    bool stuck = hangs(call);
    parent->begin([=] {
        if (stuck) parent->hang();
        if (!who(child->name, child->ranks, child->rank)) return ncclInternalError;
        if (child->ranks == 0) return ncclSuccess;
        child->device = parent->device;
        // The parent's abort ends the meeting too.
        std::atomic<bool> over{false};
        std::thread watch([&] {
            while (!over) {
                if (parent->quit) child->quit = true;
                usleep(200);
            }
        });
        ncclResult_t met = child->meet();
        over = true;
        watch.join();
        if (met == ncclSuccess) {
            child->state = ncclSuccess;
            __atomic_store_n(place, publish(child), __ATOMIC_RELEASE);
        }
        return met;
    });
    return result_of(parent);
}

/// Ends what runs here.
void quit(const std::shared_ptr<ncclComm> &comm) {
    comm->quit = true;
    if (comm->worker.joinable()) comm->worker.join();
    while (comm->running) usleep(100);
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *code) {
    ENTER(ncclGetVersion);
    *code = version();
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error", "unhandled cuda error (run with more)",
                                        "unhandled system error (run with more)", "internal error",
                                        "invalid argument (run with more)",
                                        "invalid usage (run with more)", "remote error",
                                        "in progress", "timeout"};
    return unsigned(result) < 9 ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t) { return last_error; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    ENTER(ncclGetUniqueId);
    unsigned long long random[2];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return complain(ncclSystemError, "no random numbers");
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%016llx%016llx", random[0], random[1]);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *place, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    *place = nullptr;
    CHECK(in_group(injected("ncclCommInitRankConfig")));
    std::shared_ptr<ncclComm> comm;
    CHECK(in_group(made(comm, name_of(id), ranks, rank, config)));
    return in_group(meet("ncclCommInitRankConfig", comm, place));
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
    ENTER(ncclCommFinalize);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommFinalize"));
    if (comm->finalized) return complain(ncclInvalidArgument, "finalized before");
    comm->finalized = true;
    bool stuck = hangs("ncclCommFinalize");
    comm->begin([comm = comm.get(), stuck] {
        if (stuck) comm->hang();
        comm->wait([=] { return comm->enqueued == 0; });
        return ncclSuccess;
    });
    return result_of(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
    ENTER(ncclCommDestroy);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm || comm->state == ncclInProgress) return ready(comm, "ncclCommDestroy");
    comm->wait([&] { return comm->enqueued == 0; });
    quit(comm);
    forget(handle);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
    ENTER(ncclCommAbort);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm) return complain(ncclInvalidArgument, "ncclCommAbort : no communicator");
    quit(comm);
    counts.registrations -= comm->registered.exchange(0); // NCCL takes them back itself
    forget(handle);
    return ncclSuccess;
}

ncclResult_t ncclCommRevoke(ncclComm_t handle, int flags) {
    ENTER(ncclCommRevoke);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm || flags != 0 || comm->revoked || comm->finalized)
        return complain(ncclInvalidArgument, "ncclCommRevoke : not of this communicator, or again");
    comm->revoked = comm->finalized = true;
    comm->quit = true;
    comm->begin([comm = comm.get()] {
        while (comm->running) usleep(100);
        // What is enqueued yet is passed over; what is made from it may wait again.
        while (comm->enqueued) usleep(100);
        comm->quit = false;
        return ncclSuccess;
    });
    return result_of(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t *result) {
    ENTER(ncclCommGetAsyncError);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm) return complain(ncclInvalidArgument, "ncclCommGetAsyncError : no communicator");
    *result = ncclResult_t(comm->state.load());
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int *count) {
    ENTER(ncclCommCount);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommCount"));
    *count = comm->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int *rank) {
    ENTER(ncclCommUserRank);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommUserRank"));
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int *device) {
    ENTER(ncclCommCuDevice);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommCuDevice"));
    *device = comm->device;
    return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t *place,
                           ncclConfig_t *config) {
    ENTER(ncclCommSplit);
    std::shared_ptr<ncclComm> parent = known(handle);
    CHECK(ready(parent, "ncclCommSplit"));
    uint64_t child = ++parent->children;
    auto who = [=](std::string &name, int &ranks, int &rank) {
        std::vector<std::pair<int, int>> all;
        if (!parent->exchange(color, key, all)) return false;
        ranks = rank = 0;
        if (color == NCCL_SPLIT_NOCOLOR) return true;
        for (int peer = 0; peer < parent->ranks; peer++) {
            if (all[peer].first != color) continue;
            ranks++;
            if (std::make_pair(all[peer].second, peer) < std::make_pair(key, parent->rank)) rank++;
        }
        std::string words = "split " + std::to_string(child) + " " + std::to_string(color);
        name = derived(parent->name, words);
        return true;
    };
    return bear("ncclCommSplit", parent, place, config, who);
}

ncclResult_t ncclCommShrink(ncclComm_t handle, int *without, int count, ncclComm_t *place,
                            ncclConfig_t *config, int flags) {
    ENTER(ncclCommShrink);
    std::shared_ptr<ncclComm> parent = known(handle);
    if (!parent) return ready(parent, "ncclCommShrink");
    if (flags & NCCL_SHRINK_ABORT) {
        quit(parent);
        while (parent->enqueued) usleep(100);
        parent->quit = false;
        parent->state = ncclSuccess;
    }
    CHECK(ready(parent, "ncclCommShrink"));
    std::set<int> gone(without, without + std::max(count, 0));
    if (gone.empty() || gone.count(parent->rank))
        return complain(ncclInvalidArgument, "ncclCommShrink : the list of ranks is wrong");
    uint64_t child = ++parent->children;
    auto who = [=](std::string &name, int &ranks, int &rank) {
        ranks = rank = 0;
        std::string words = "shrink " + std::to_string(child);
        for (int peer = 0; peer < parent->ranks; peer++) {
            if (gone.count(peer)) {
                words += " " + std::to_string(peer);
                continue;
            }
            ranks++;
            if (peer < parent->rank) rank++;
        }
        name = derived(parent->name, words);
        return true;
    };
    return bear("ncclCommShrink", parent, place, config, who);
}

ncclResult_t ncclCommGetUniqueId(ncclComm_t handle, ncclUniqueId *id) {
    ENTER(ncclCommGetUniqueId);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommGetUniqueId"));
    std::string name = derived(comm->name, "grow " + std::to_string(comm->grown + 1));
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%s", name.c_str());
    return ncclSuccess;
}

ncclResult_t ncclCommGrow(ncclComm_t handle, int ranks, const ncclUniqueId *id, int rank,
                          ncclComm_t *place, ncclConfig_t *config) {
    ENTER(ncclCommGrow);
    *place = nullptr;
    std::shared_ptr<ncclComm> parent, comm;
    std::string name;
    if (handle) {
        parent = known(handle);
        CHECK(ready(parent, "ncclCommGrow"));
        if (rank != -1 || ranks <= parent->ranks)
            return complain(ncclInvalidArgument, "ncclCommGrow : wrong rank or number of ranks");
        name = derived(parent->name, "grow " + std::to_string(++parent->grown));
        rank = parent->rank;
    } else {
        if (!id) return complain(ncclInvalidArgument, "ncclCommGrow : no unique id");
        name = name_of(*id);
    }
    CHECK(made(comm, name, ranks, rank, config));
    return meet("ncclCommGrow", comm, place);
}

ncclResult_t ncclMemAlloc(void **at, size_t bytes) {
    ENTER(ncclMemAlloc);
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*at) return complain(ncclSystemError, "no memory");
    counts.memory++;
    return ncclSuccess;
}

ncclResult_t ncclMemFree(void *at) {
    ENTER(ncclMemFree);
    free(at);
    counts.memory--;
    return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t handle, void *, size_t, void **registration) {
    ENTER(ncclCommRegister);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommRegister"));
    *registration = new char;
    comm->registrations.insert(*registration);
    counts.registrations++;
    comm->registered++;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t handle, void *registration) {
    ENTER(ncclCommDeregister);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm || !comm->registrations.erase(registration))
        return complain(ncclInvalidArgument, "ncclCommDeregister : no registration");
    delete static_cast<char *>(registration);
    counts.registrations--;
    comm->registered--;
    return ncclSuccess;
}

ncclResult_t ncclCommWindowRegister(ncclComm_t handle, void *, size_t, ncclWindow_t *window,
                                    int flags) {
    ENTER(ncclCommWindowRegister);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommWindowRegister"));
    *window = nullptr;
    // Ranks do this together.
    comm->begin([comm = comm.get(), window, flags] {
        std::vector<std::pair<int, int>> all;
        if (!comm->exchange(flags, 0, all)) return ncclInternalError;
        void *made = new char;
        comm->registrations.insert(made);
        counts.windows++;
        __atomic_store_n(window, static_cast<ncclWindow_t>(made), __ATOMIC_RELEASE);
        return ncclSuccess;
    });
    return result_of(comm);
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t handle, ncclWindow_t window) {
    ENTER(ncclCommWindowDeregister);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclCommWindowDeregister"));
    if (!comm->registrations.erase(window))
        return complain(ncclInvalidArgument, "ncclCommWindowDeregister : no window");
    delete reinterpret_cast<char *>(window);
    counts.windows--;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    ENTER(ncclGroupStart);
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group.depth == 0) return complain(ncclInvalidUsage, "ncclGroupEnd : no group is open");
    ncclResult_t bad = injected("ncclGroupEnd");
    if (bad != ncclSuccess && group.bad == ncclSuccess) group.bad = bad;
    return --group.depth > 0 ? bad : end_group();
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t handle) {
    ENTER(ncclRedOpCreatePreMulSum);
    std::shared_ptr<ncclComm> comm = known(handle);
    CHECK(ready(comm, "ncclRedOpCreatePreMulSum"));
    if (int(type) < 0 || int(type) > ncclFloat8e5m2)
        return complain(ncclInvalidArgument, "ncclRedOpCreatePreMulSum : invalid type");
    ncclComm::Op made = {int(type), {}};
    if (residence == ncclScalarDevice) made.scalar.scalar_at = scalar;
    else memcpy(made.scalar.scalar, scalar, bytes_of(type));
    int number = ncclAvg + 1;
    while (comm->ops.count(number)) number++;
    comm->ops[number] = made;
    *op = ncclRedOp_t(number);
    counts.ops++;
    return ncclSuccess;
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t handle) {
    ENTER(ncclRedOpDestroy);
    std::shared_ptr<ncclComm> comm = known(handle);
    if (!comm || !comm->ops.erase(op))
        return complain(ncclInvalidArgument, "ncclRedOpDestroy : operator unknown");
    counts.ops--;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclAllReduce", comm, stream,
                   collective(AllReduce, send, recv, count, type, op, 0));
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclReduce", comm, stream,
                   collective(Reduce, send, recv, count, type, op, root));
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclBroadcast", comm, stream,
                   collective(Broadcast, send, recv, count, type, 0, root));
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclAllGather", comm, stream,
                   collective(AllGather, send, recv, count, type, 0, 0));
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclReduceScatter", comm, stream,
                   collective(ReduceScatter, send, recv, count, type, op, 0));
}

ncclResult_t ncclAlltoAll(const void *send, void *recv, size_t count, ncclDataType_t type,
                          ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclAlltoAll", comm, stream,
                   collective(AlltoAll, send, recv, count, type, 0, 0));
}

ncclResult_t ncclGather(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclGather", comm, stream,
                   collective(Gather, send, recv, count, type, 0, root));
}

ncclResult_t ncclScatter(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                         ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclScatter", comm, stream,
                   collective(Scatter, send, recv, count, type, 0, root));
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    return enqueue("ncclSend", comm, stream, collective(Send, send, nullptr, count, type, 0, peer));
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return enqueue("ncclRecv", comm, stream, collective(Recv, nullptr, recv, count, type, 0, peer));
}

} // extern "C"
