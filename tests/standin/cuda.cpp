// A stand-in for the CUDA driver: the calls of ffi/cuda/driver.h, carried out on host memory.
//
// Honest where it matters to a program's correctness: every stream is a queue with a thread of its
// own, so what is not ordered by an event, a value or the legacy default stream is not ordered at
// all. Device memory is a shared mapping of a file in memory, which another process opens by way of
// /proc; memory of another device needs peer access in kernels and stream values; errors of queued
// work show later and for good; capture refuses what the driver refuses.
//
// Not modelled: allocation inside a capture, several contexts a device, pools, priorities, and
// clusters. Host code that touches device memory is not caught.
//
// Variables, read at the first call:
//   STANDIN_CUDA_DEVICES=n       devices (1); 0: cuInit finds none
//   STANDIN_CUDA_VERSION=n       what cuDriverGetVersion says (13000)
//   STANDIN_CUDA_MEMORY=bytes    memory of a device (1 GiB)
//   STANDIN_CUDA_NO_PEER=1       no device can reach another
//   STANDIN_CUDA_DELAY_US=n      queued work sleeps this long before it begins
//   STANDIN_CUDA_FAIL=list       function:nth call or *:code, with commas; "@function" is the nth
//                                time that queued work of that call runs, which then fails
//   STANDIN_CUDA_LEAKS=path      at exit: what lives still, a line each; %p is the process's number
//
// standin_cuda_live(what) counts what lives, standin_cuda_lose(device, code) loses a device.

#include "driver.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

extern "C" {
// The kernels' twins on the host, where they are part of this library.
int unisono_twin_launch(const char *name, unsigned grid, unsigned block, const void *arguments)
    __attribute__((weak));
int unisono_twin_has(const char *name) __attribute__((weak));
size_t unisono_twin_size(const char *name) __attribute__((weak));
}

namespace {

using Lock = std::unique_lock<std::mutex>;
using Stream = std::shared_ptr<CUstream_st>;
using Work = std::function<CUresult()>;

struct Node {
    const char *what;
    Work work;
    std::vector<size_t> after;
    size_t lane;
};

struct Capture {
    cuuint64_t id;
    CUstream origin;
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    bool ended = false;
    std::vector<Node> nodes;
    std::vector<Stream> members;
};

// Queued work, and how far other streams must be before it begins.
struct Queued {
    const char *what;
    Work work;
    std::vector<std::pair<Stream, uint64_t>> after;
};

struct Record {
    bool done = false;
    int64_t nanos = 0;
};

// An event that processes share, in a file in memory.
struct Marks {
    std::atomic<uint64_t> recorded;
    std::atomic<uint64_t> done;
};

enum class Kind { Device, Managed, Pinned, Registered, Opened };

struct Range {
    size_t bytes;
    Kind kind;
    int ordinal;
    int fd;
    uint64_t cookie;
    bool ordered;
    int references;
};

// How processes name memory and events to each other, in the 64 bytes of a handle.
struct Name {
    char mark[8];
    int32_t pid;
    int32_t fd;
    uint64_t cookie;
    uint64_t bytes;
    int32_t ordinal;
};
static_assert(sizeof(Name) <= sizeof(CUipcMemHandle), "a handle holds a name");

struct Fault {
    std::string function;
    long nth;
    CUresult code;
    long seen = 0;
};

}  // namespace

struct CUctx_st {
    int ordinal = 0;
    int retained = 0;
    std::atomic<CUresult> lost{CUDA_SUCCESS};
    std::set<int> peers;
    Stream legacy;
    std::vector<Stream> streams;
    size_t used = 0;
};

struct CUstream_st : std::enable_shared_from_this<CUstream_st> {
    CUcontext context = nullptr;
    bool blocking = true;
    bool legacy = false;
    bool started = false;
    bool gone = false;
    std::deque<Queued> queue;
    uint64_t queued = 0;
    uint64_t completed = 0;
    std::shared_ptr<Capture> capture;
    std::set<size_t> frontier;
};

struct CUevent_st {
    CUcontext context = nullptr;
    unsigned flags = 0;
    std::shared_ptr<Record> last;
    std::shared_ptr<Capture> capture;
    std::set<size_t> captured;
    Marks *marks = nullptr;
    int fd = -1;
    uint64_t cookie = 0;
};

struct CUfunc_st {
    CUmodule module;
    std::string name;
};

struct CUmod_st {
    CUcontext context;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

struct CUgraph_st {
    std::vector<Node> nodes;
};

struct CUgraphExec_st {
    std::vector<Node> nodes;
};

namespace {

// Never destroyed: streams' threads may outlive whatever ends with the process.
struct World {
    std::mutex lock;
    std::condition_variable moved;
    bool initialised = false;
    bool over = false;
    pid_t pid = 0;
    std::vector<std::unique_ptr<CUctx_st>> devices;
    std::map<uintptr_t, Range> ranges;
    std::map<CUstream, Stream> streams;
    std::map<CUevent, std::shared_ptr<CUevent_st>> events;
    std::set<CUmodule> modules;
    std::set<CUgraph> graphs;
    std::set<CUgraphExec> execs;
    std::vector<std::shared_ptr<Capture>> captures;
    std::vector<Fault> faults;
    size_t memory = size_t(1) << 30;
    int count = 1;
    int version = 13000;
    bool peers = true;
    unsigned delay_us = 0;
    std::string leaks;
    uint64_t next = 0;
};

void read_settings(World &w)
{
    auto number = [](const char *name, long otherwise) {
        const char *text = getenv(name);
        return text && *text ? atol(text) : otherwise;
    };
    w.count = int(number("STANDIN_CUDA_DEVICES", 1));
    w.version = int(number("STANDIN_CUDA_VERSION", 13000));
    w.memory = size_t(number("STANDIN_CUDA_MEMORY", 1L << 30));
    w.delay_us = unsigned(number("STANDIN_CUDA_DELAY_US", 0));
    w.peers = number("STANDIN_CUDA_NO_PEER", 0) == 0;
    if (const char *path = getenv("STANDIN_CUDA_LEAKS")) w.leaks = path;
    const char *list = getenv("STANDIN_CUDA_FAIL");
    std::string rest = list ? list : "";
    while (!rest.empty()) {
        size_t end = std::min(rest.find(','), rest.size());
        std::string one = rest.substr(0, end);
        rest.erase(0, end + 1);
        size_t first = one.find(':'), second = one.rfind(':');
        if (first == std::string::npos || first == second) {
            fprintf(stderr, "STANDIN_CUDA_FAIL: %s?\n", one.c_str());
            abort();
        }
        std::string nth = one.substr(first + 1, second - first - 1);
        w.faults.push_back({one.substr(0, first), nth == "*" ? 0 : atol(nth.c_str()),
                            CUresult(atol(one.c_str() + second + 1))});
    }
    for (int i = 0; i < w.count; i++) {
        w.devices.emplace_back(new CUctx_st);
        w.devices.back()->ordinal = i;
    }
}

World &world()
{
    static World *made = [] {
        World *w = new World;
        w->pid = getpid();
        read_settings(*w);
        return w;
    }();
    return *made;
}

thread_local std::vector<CUcontext> stack;
thread_local CUstreamCaptureMode mode_of_thread = CU_STREAM_CAPTURE_MODE_GLOBAL;
thread_local std::map<CUcontext, Stream> stream_of_thread;

CUcontext current() { return stack.empty() ? nullptr : stack.back(); }

bool loses(CUresult code)
{
    return code == 46 || code == 214 || code == 220 || code == 226 || code == 700 || code == 702 ||
           code == 710 || (code >= 714 && code <= 719) || code == 721 || code == 810;
}

CUresult fault(World &w, const std::string &name)
{
    CUresult code = CUDA_SUCCESS;
    for (Fault &one : w.faults) {
        if (one.function != name) continue;
        one.seen++;
        if (!code && (one.nth == 0 || one.seen == one.nth)) code = one.code;
    }
    return code;
}

// What every call begins with. A call that gives something back does so in a lost context too.
CUresult enter(World &w, const char *name, bool starts = false)
{
    if (getpid() != w.pid) return CUDA_ERROR_NOT_INITIALIZED;
    if (w.over) return CUDA_ERROR_DEINITIALIZED;
    if (CUresult code = fault(w, name)) {
        if (loses(code) && current()) current()->lost = code;
        w.moved.notify_all();
        return code;
    }
    return starts || w.initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

// The current context, if it can still be used.
CUresult use_current(CUcontext *context)
{
    *context = current();
    if (!*context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!(*context)->retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return (*context)->lost;
}

Stream make_stream(CUcontext context, bool blocking)
{
    Stream made = std::make_shared<CUstream_st>();
    made->context = context;
    made->blocking = blocking;
    context->streams.push_back(made);
    return made;
}

// The stream that a handle names, default ones included.
CUresult find_stream(World &w, CUstream handle, Stream *found)
{
    uintptr_t number = reinterpret_cast<uintptr_t>(handle);
    if (number > 2) {
        auto it = w.streams.find(handle);
        if (it == w.streams.end()) return CUDA_ERROR_INVALID_HANDLE;
        *found = it->second;
        return (*found)->context->retained ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    CUcontext context = current();
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (number == 2) {
        Stream &own = stream_of_thread[context];
        if (!own) own = make_stream(context, true);
        *found = own;
        return CUDA_SUCCESS;
    }
    if (!context->legacy) {
        context->legacy = make_stream(context, true);
        context->legacy->legacy = true;
    }
    *found = context->legacy;
    return CUDA_SUCCESS;
}

// Legacy work while a stream that it would wait for is captured.
bool implied(const Stream &stream)
{
    if (!stream->legacy) return false;
    bool any = false;
    for (const Stream &other : stream->context->streams) {
        if (other->blocking && other->capture && !other->capture->ended) {
            any = other->capture->invalid = true;
        }
    }
    return any;
}

// A stream that takes work.
CUresult use_stream(World &w, CUstream handle, Stream *found)
{
    if (CUresult code = find_stream(w, handle, found)) return code;
    if (CUresult code = (*found)->context->lost) return code;
    if (implied(*found)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if ((*found)->capture && (*found)->capture->invalid) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    return CUDA_SUCCESS;
}

// Refuses what must not happen while a capture of this thread, or of any, is under way.
CUresult unsafe_call(World &w)
{
    if (mode_of_thread == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
    bool any = false;
    for (auto &capture : w.captures) {
        bool own = capture->thread == std::this_thread::get_id();
        bool global = capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        bool concerns = own ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                            : global && mode_of_thread == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (concerns) any = capture->invalid = true;
    }
    return any ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

void delay(World &w)
{
    if (w.delay_us) usleep(w.delay_us);
}

void serve(World &w, Stream self)
{
    Lock lock(w.lock);
    for (;;) {
        w.moved.wait(lock, [&] { return !self->queue.empty() || self->gone; });
        if (self->queue.empty()) break;
        Queued one = std::move(self->queue.front());
        self->queue.pop_front();
        w.moved.wait(lock, [&] {
            for (auto &[stream, number] : one.after) {
                if (stream->completed < number) return false;
            }
            return true;
        });
        CUresult code = self->context->lost;
        if (!code) {
            lock.unlock();
            delay(w);
            lock.lock();
            code = fault(w, std::string("@") + one.what);
            if (!code) code = self->context->lost;
            lock.unlock();
            if (!code) code = one.work();
            one.work = nullptr;
            lock.lock();
        }
        if (code && !self->context->lost) self->context->lost = code;
        self->completed++;
        w.moved.notify_all();
    }
    auto &all = self->context->streams;
    all.erase(std::remove(all.begin(), all.end(), self), all.end());
    w.moved.notify_all();
}

void push(World &w, const Stream &stream, const char *what, Work work)
{
    Queued one{what, std::move(work), {}};
    CUcontext context = stream->context;
    if (stream->legacy) {
        for (const Stream &other : context->streams) {
            if (other->blocking && other != stream) one.after.emplace_back(other, other->queued);
        }
    } else if (stream->blocking && context->legacy) {
        one.after.emplace_back(context->legacy, context->legacy->queued);
    }
    stream->queue.push_back(std::move(one));
    stream->queued++;
    if (!stream->started) {
        stream->started = true;
        std::thread([&w, stream] { serve(w, stream); }).detach();
    }
    w.moved.notify_all();
}

// Queues work, or makes it a node of the graph that is being captured.
void submit(World &w, const Stream &stream, const char *what, Work work)
{
    if (!stream->capture) return push(w, stream, what, std::move(work));
    Capture &capture = *stream->capture;
    auto at = std::find(capture.members.begin(), capture.members.end(), stream);
    size_t lane = size_t(at - capture.members.begin());
    std::vector<size_t> after(stream->frontier.begin(), stream->frontier.end());
    capture.nodes.push_back({what, std::move(work), std::move(after), lane});
    stream->frontier = {capture.nodes.size() - 1};
}

void drain(World &w, Lock &lock, const Stream &stream)
{
    uint64_t until = stream->queued;
    w.moved.wait(lock, [&] { return stream->completed >= until; });
}

void drain_all(World &w, Lock &lock, CUcontext context)
{
    std::vector<Stream> all = context->streams;
    for (const Stream &stream : all) drain(w, lock, stream);
}

std::map<uintptr_t, Range>::iterator find_range(World &w, uintptr_t at, size_t bytes = 1)
{
    auto it = w.ranges.upper_bound(at);
    if (it == w.ranges.begin()) return w.ranges.end();
    --it;
    bool inside = at - it->first < it->second.bytes && bytes <= it->second.bytes - (at - it->first);
    return inside ? it : w.ranges.end();
}

bool of_device(const Range &range)
{
    return range.kind == Kind::Device || range.kind == Kind::Managed || range.kind == Kind::Opened;
}

// Whether code on a context's device may touch a range.
bool reaches(CUcontext context, const Range &range)
{
    return range.kind == Kind::Managed || !of_device(range) || range.ordinal == context->ordinal ||
           context->peers.count(range.ordinal);
}

std::string file_name(uint64_t cookie) { return "standin-cuda-" + std::to_string(cookie); }

uint64_t cookie(World &w)
{
    auto now = std::chrono::system_clock::now().time_since_epoch().count();
    return uint64_t(now) * 1000 + w.next++ % 1000;
}

void *map_file(size_t bytes, int fd)
{
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? nullptr : at;
}

// A file in memory of this size, mapped.
void *make_file(size_t bytes, uint64_t cookie, int *fd)
{
    *fd = memfd_create(file_name(cookie).c_str(), MFD_CLOEXEC);
    if (*fd < 0) return nullptr;
    void *at = ftruncate(*fd, off_t(bytes)) == 0 ? map_file(bytes, *fd) : nullptr;
    if (!at) close(*fd);
    return at;
}

// Another process's file in memory, if it is still the one that was named.
void *open_file(const Name &name, size_t bytes)
{
    char path[64], link[128] = {};
    snprintf(path, sizeof path, "/proc/%d/fd/%d", name.pid, name.fd);
    if (readlink(path, link, sizeof link - 1) < 0) return nullptr;
    if (!strstr(link, ("memfd:" + file_name(name.cookie) + " ").c_str())) return nullptr;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return nullptr;
    struct stat found;
    void *at = nullptr;
    if (fstat(fd, &found) == 0 && size_t(found.st_size) >= bytes) at = map_file(bytes, fd);
    close(fd);
    return at;
}

CUresult make_memory(World &w, CUcontext context, CUdeviceptr *at, size_t bytes, Kind kind,
                     bool ordered)
{
    if (!at || !bytes) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > w.memory || context->used > w.memory - bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t mark = cookie(w);
    int fd;
    void *made = make_file(bytes, mark, &fd);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    // What a program reads without having written it is not zero.
    memset(made, 0xa5, std::min(bytes, size_t(1) << 20));
    context->used += bytes;
    uintptr_t address = reinterpret_cast<uintptr_t>(made);
    w.ranges[address] = {bytes, kind, context->ordinal, fd, mark, ordered, 1};
    *at = address;
    return CUDA_SUCCESS;
}

void free_memory(World &w, uintptr_t at)
{
    auto it = w.ranges.find(at);
    Range range = it->second;
    w.ranges.erase(it);
    munmap(reinterpret_cast<void *>(at), range.bytes);
    if (range.fd >= 0) close(range.fd);
    if (range.kind == Kind::Device || range.kind == Kind::Managed) {
        w.devices[size_t(range.ordinal)]->used -= range.bytes;
    }
}

CUresult run_nodes(World &w, CUcontext context, const std::vector<Node> &nodes)
{
    size_t lanes = 0;
    for (const Node &node : nodes) lanes = std::max(lanes, node.lane + 1);
    std::vector<bool> done(nodes.size());
    std::mutex lock;
    std::condition_variable moved;
    CUresult first = CUDA_SUCCESS;
    auto run = [&](size_t lane) {
        for (size_t i = 0; i < nodes.size(); i++) {
            const Node &node = nodes[i];
            if (node.lane != lane) continue;
            Lock held(lock);
            moved.wait(held, [&] {
                return std::all_of(node.after.begin(), node.after.end(),
                                   [&](size_t n) { return bool(done[n]); });
            });
            bool lost = first || context->lost;
            held.unlock();
            if (!lost) delay(w);
            CUresult code = lost ? CUresult(CUDA_SUCCESS) : node.work();
            held.lock();
            if (code && !first) first = code;
            done[i] = true;
            moved.notify_all();
        }
    };
    std::vector<std::thread> threads;
    for (size_t lane = 0; lane < lanes; lane++) threads.emplace_back(run, lane);
    for (std::thread &thread : threads) thread.join();
    return first;
}

long live(World &w, const std::string &what)
{
    long count = 0;
    auto kinds = [&](std::initializer_list<Kind> wanted) {
        for (auto &[at, range] : w.ranges) {
            count += std::find(wanted.begin(), wanted.end(), range.kind) != wanted.end();
        }
        return count;
    };
    if (what == "device") return kinds({Kind::Device, Kind::Managed});
    if (what == "host") return kinds({Kind::Pinned});
    if (what == "registered") return kinds({Kind::Registered});
    if (what == "opened") return kinds({Kind::Opened});
    if (what == "streams") return long(w.streams.size());
    if (what == "events") return long(w.events.size());
    if (what == "modules") return long(w.modules.size());
    if (what == "graphs") return long(w.graphs.size() + w.execs.size());
    if (what == "contexts") {
        for (auto &device : w.devices) count += device->retained;
        return count;
    }
    return -1;
}

const char *const COUNTED[] = {"device", "host",    "registered", "opened",  "streams",
                               "events", "modules", "graphs",     "contexts"};

__attribute__((destructor)) void finish()
{
    World &w = world();
    if (getpid() != w.pid) return;
    Lock lock(w.lock);
    if (!w.leaks.empty() && w.initialised) {
        std::string path = w.leaks;
        size_t at = path.find("%p");
        if (at != std::string::npos) path.replace(at, 2, std::to_string(getpid()));
        if (FILE *file = fopen(path.c_str(), "w")) {
            for (const char *what : COUNTED) fprintf(file, "%s %ld\n", what, live(w, what));
            fclose(file);
        }
    }
    w.over = true;
}

struct Text {
    CUresult code;
    const char *name;
    const char *text;
};

#define TEXT(code, text) {code, #code, text}
const Text TEXTS[] = {
    TEXT(CUDA_SUCCESS, "no error"),
    TEXT(CUDA_ERROR_INVALID_VALUE, "stand-in: invalid value"),
    TEXT(CUDA_ERROR_OUT_OF_MEMORY, "stand-in: out of memory"),
    TEXT(CUDA_ERROR_NOT_INITIALIZED, "stand-in: not initialised"),
    TEXT(CUDA_ERROR_DEINITIALIZED, "stand-in: shutting down"),
    TEXT(CUDA_ERROR_DEVICE_UNAVAILABLE, "stand-in: device unavailable"),
    TEXT(CUDA_ERROR_NO_DEVICE, "stand-in: no device"),
    TEXT(CUDA_ERROR_INVALID_DEVICE, "stand-in: invalid device"),
    TEXT(CUDA_ERROR_INVALID_IMAGE, "stand-in: invalid image"),
    TEXT(CUDA_ERROR_INVALID_CONTEXT, "stand-in: invalid context"),
    TEXT(CUDA_ERROR_ECC_UNCORRECTABLE, "stand-in: uncorrectable memory error"),
    TEXT(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, "stand-in: no peer access"),
    TEXT(CUDA_ERROR_INVALID_HANDLE, "stand-in: invalid handle"),
    TEXT(CUDA_ERROR_NOT_FOUND, "stand-in: not found"),
    TEXT(CUDA_ERROR_NOT_READY, "stand-in: not ready"),
    TEXT(CUDA_ERROR_ILLEGAL_ADDRESS, "stand-in: illegal address"),
    TEXT(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "stand-in: peer access is enabled already"),
    TEXT(CUDA_ERROR_CONTEXT_IS_DESTROYED, "stand-in: the context is destroyed"),
    TEXT(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "stand-in: registered already"),
    TEXT(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "stand-in: not registered"),
    TEXT(CUDA_ERROR_LAUNCH_FAILED, "stand-in: launch failed"),
    TEXT(CUDA_ERROR_NOT_SUPPORTED, "stand-in: not supported"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "stand-in: not while a stream is captured"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "stand-in: the capture is invalid"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_MERGE, "stand-in: two captures would become one"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "stand-in: not where the capture began"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "stand-in: a captured stream was not joined"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "stand-in: depends on work outside the capture"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "stand-in: depends on the legacy stream"),
    TEXT(CUDA_ERROR_CAPTURED_EVENT, "stand-in: the event was recorded in a capture"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "stand-in: the capture is another thread's"),
    TEXT(CUDA_ERROR_UNKNOWN, "stand-in: unknown"),
};

const Text *find_text(CUresult code)
{
    for (const Text &one : TEXTS) {
        if (one.code == code) return &one;
    }
    return nullptr;
}

bool is_device(World &w, CUdevice device) { return device >= 0 && device < w.count; }

int64_t now()
{
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

std::shared_ptr<CUevent_st> find_event(World &w, CUevent event)
{
    auto it = w.events.find(event);
    return it == w.events.end() ? nullptr : it->second;
}

}  // namespace

#define BEGIN(name)          \
    World &w = world();      \
    Lock lock(w.lock);       \
    if (CUresult code = enter(w, #name)) return code

#define CURRENT(context) \
    CUcontext context;   \
    if (CUresult code = use_current(&context)) return code

#define STREAM(found, handle) \
    Stream found;             \
    if (CUresult code = use_stream(w, handle, &found)) return code

#define SAFE() \
    if (CUresult code = unsafe_call(w)) return code

extern "C" {

long standin_cuda_live(const char *what)
{
    World &w = world();
    Lock lock(w.lock);
    return live(w, what);
}

void standin_cuda_lose(int device, int code)
{
    World &w = world();
    Lock lock(w.lock);
    w.devices.at(size_t(device))->lost = CUresult(code);
    w.moved.notify_all();
}

CUresult cuInit(unsigned flags)
{
    World &w = world();
    Lock lock(w.lock);
    if (CUresult code = enter(w, "cuInit", true)) return code;
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (w.count <= 0) return CUDA_ERROR_NO_DEVICE;
    w.initialised = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
    World &w = world();
    Lock lock(w.lock);
    if (CUresult code = enter(w, "cuDriverGetVersion", true)) return code;
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = w.version;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    const Text *found = find_text(error);
    *text = found ? found->name : nullptr;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    const Text *found = find_text(error);
    *text = found ? found->text : nullptr;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count)
{
    BEGIN(cuDeviceGetCount);
    *count = w.count;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    BEGIN(cuDeviceGet);
    if (!is_device(w, ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int bytes, CUdevice device)
{
    BEGIN(cuDeviceGetName);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, size_t(bytes), "Stand-in GPU");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    BEGIN(cuDeviceGetUuid_v2);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid->bytes, "standin-cuda-gpu", 16);
    uuid->bytes[15] = char(device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *id, int bytes, CUdevice device)
{
    BEGIN(cuDeviceGetPCIBusId);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, size_t(bytes), "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    BEGIN(cuDeviceGetAttribute);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS: *value = 1; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    BEGIN(cuDeviceTotalMem_v2);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = w.memory;
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    BEGIN(cuDeviceCanAccessPeer);
    if (!is_device(w, device) || !is_device(w, peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = w.peers && device != peer;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    BEGIN(cuDevicePrimaryCtxRetain);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    *context = w.devices[size_t(device)].get();
    (*context)->retained++;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    BEGIN(cuDevicePrimaryCtxRelease_v2);
    if (!is_device(w, device)) return CUDA_ERROR_INVALID_DEVICE;
    CUcontext context = w.devices[size_t(device)].get();
    if (!context->retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--context->retained == 0) context->peers.clear();
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    BEGIN(cuCtxPushCurrent_v2);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    stack.push_back(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    BEGIN(cuCtxPopCurrent_v2);
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = stack.back();
    stack.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
    BEGIN(cuCtxGetCurrent);
    *context = current();
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    BEGIN(cuCtxSetCurrent);
    if (!stack.empty()) stack.pop_back();
    if (context) stack.push_back(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
    BEGIN(cuCtxGetDevice);
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    *device = current()->ordinal;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
    BEGIN(cuCtxSynchronize);
    CURRENT(context);
    SAFE();
    for (const Stream &stream : context->streams) {
        if (!stream->capture) continue;
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    drain_all(w, lock, context);
    return context->lost;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    BEGIN(cuCtxEnablePeerAccess);
    CURRENT(context);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!peer || !peer->retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (peer == context) return CUDA_ERROR_INVALID_DEVICE;
    if (!w.peers) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    bool added = context->peers.insert(peer->ordinal).second;
    return added ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int)
{
    BEGIN(cuStreamCreateWithPriority);
    CURRENT(context);
    if (flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    Stream made = make_stream(context, flags != CU_STREAM_NON_BLOCKING);
    w.streams[made.get()] = made;
    *stream = made.get();
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
    BEGIN(cuStreamDestroy_v2);
    auto it = w.streams.find(stream);
    if (it == w.streams.end()) return CUDA_ERROR_INVALID_HANDLE;
    Stream found = it->second;
    if (found->capture) found->capture->invalid = true;
    w.streams.erase(it);
    found->gone = true;
    auto &all = found->context->streams;
    if (!found->started) all.erase(std::remove(all.begin(), all.end(), found), all.end());
    w.moved.notify_all();
    return found->context->lost;
}

CUresult cuStreamSynchronize(CUstream stream)
{
    BEGIN(cuStreamSynchronize);
    STREAM(found, stream);
    if (found->capture) {
        found->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    SAFE();
    // The legacy stream is done when what it waits for is.
    if (found->legacy) push(w, found, "", [] { return CUresult(CUDA_SUCCESS); });
    drain(w, lock, found);
    return found->context->lost;
}

CUresult cuStreamQuery(CUstream stream)
{
    BEGIN(cuStreamQuery);
    STREAM(found, stream);
    if (found->capture) {
        found->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    SAFE();
    for (const Stream &other : found->context->streams) {
        bool counts = other == found || (found->legacy && other->blocking);
        if (counts && other->completed < other->queued) return CUDA_ERROR_NOT_READY;
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    BEGIN(cuStreamGetCtx);
    Stream found;
    if (CUresult code = find_stream(w, stream, &found)) return code;
    *context = found->context;
    return CUDA_SUCCESS;
}

// Waits for an event, or takes part in the capture in which it was recorded.
static CUresult wait_captured(const Stream &stream, const CUevent_st &event)
{
    Capture &capture = *event.capture;
    if (capture.ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (capture.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->legacy) {
        capture.invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (stream->capture && stream->capture != event.capture) {
        capture.invalid = stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (!stream->capture) {
        stream->capture = event.capture;
        stream->frontier.clear();
        capture.members.push_back(stream);
    }
    stream->frontier.insert(event.captured.begin(), event.captured.end());
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags)
{
    BEGIN(cuStreamWaitEvent);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    auto found = find_event(w, event);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    STREAM(on, stream);
    if (found->capture) return wait_captured(on, *found);
    bool recorded = found->marks ? found->marks->recorded > 0 : bool(found->last);
    if (!recorded) return CUDA_SUCCESS;
    if (on->capture) {
        on->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    CUcontext context = on->context;
    if (found->marks) {
        uint64_t number = found->marks->recorded;
        push(w, on, "cuStreamWaitEvent", [found, number, context] {
            while (found->marks->done < number && !context->lost) usleep(20);
            return CUresult(CUDA_SUCCESS);
        });
    } else {
        std::shared_ptr<Record> record = found->last;
        push(w, on, "cuStreamWaitEvent", [record, context, &w] {
            Lock lock(w.lock);
            w.moved.wait(lock, [&] { return record->done || context->lost; });
            return CUresult(CUDA_SUCCESS);
        });
    }
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
    BEGIN(cuStreamIsCapturing);
    Stream found;
    if (CUresult code = find_stream(w, stream, &found)) return code;
    if (implied(found)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    *status = !found->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
              : found->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id,
                                   CUgraph *graph, const CUgraphNode **dependencies, size_t *count)
{
    BEGIN(cuStreamGetCaptureInfo_v2);
    if (graph || dependencies || count) return CUDA_ERROR_NOT_SUPPORTED;
    Stream found;
    if (CUresult code = find_stream(w, stream, &found)) return code;
    if (implied(found)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    *status = !found->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
              : found->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (id && found->capture) *id = found->capture->id;
    return CUDA_SUCCESS;
}

// A place for a stream's values: a word of memory that the device reaches.
static CUresult find_word(World &w, const Stream &stream, CUdeviceptr at,
                          std::atomic<cuuint32_t> **word)
{
    auto range = find_range(w, at, 4);
    if (at % 4 || range == w.ranges.end()) return CUDA_ERROR_INVALID_VALUE;
    if (!reaches(stream->context, range->second)) return CUDA_ERROR_INVALID_VALUE;
    *word = reinterpret_cast<std::atomic<cuuint32_t> *>(at);
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitValue32_v2(CUstream stream, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    BEGIN(cuStreamWaitValue32_v2);
    STREAM(on, stream);
    std::atomic<cuuint32_t> *word;
    if (flags > CU_STREAM_WAIT_VALUE_NOR) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult code = find_word(w, on, at, &word)) return code;
    CUcontext context = on->context;
    submit(w, on, "cuStreamWaitValue32_v2", [=] {
        for (;;) {
            cuuint32_t found = word->load(std::memory_order_acquire);
            bool holds = flags == CU_STREAM_WAIT_VALUE_GEQ   ? int32_t(found - value) >= 0
                         : flags == CU_STREAM_WAIT_VALUE_EQ  ? found == value
                         : flags == CU_STREAM_WAIT_VALUE_AND ? (found & value) != 0
                                                             : (~(found | value)) != 0;
            if (holds || context->lost) return CUresult(CUDA_SUCCESS);
            usleep(20);
        }
    });
    return CUDA_SUCCESS;
}

CUresult cuStreamWriteValue32_v2(CUstream stream, CUdeviceptr at, cuuint32_t value, unsigned flags)
{
    BEGIN(cuStreamWriteValue32_v2);
    STREAM(on, stream);
    std::atomic<cuuint32_t> *word;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult code = find_word(w, on, at, &word)) return code;
    submit(w, on, "cuStreamWriteValue32_v2", [=] {
        word->store(value, std::memory_order_release);
        return CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data)
{
    BEGIN(cuLaunchHostFunc);
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    STREAM(on, stream);
    submit(w, on, "cuLaunchHostFunc", [=] {
        function(data);
        return CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode)
{
    BEGIN(cuStreamBeginCapture_v2);
    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    STREAM(on, stream);
    if (on->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (on->capture) return CUDA_ERROR_INVALID_VALUE;
    auto made = std::make_shared<Capture>();
    made->id = ++w.next;
    made->origin = on.get();
    made->mode = mode;
    made->thread = std::this_thread::get_id();
    made->members.push_back(on);
    on->capture = made;
    on->frontier.clear();
    w.captures.push_back(made);
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
    BEGIN(cuStreamEndCapture);
    Stream on;
    if (CUresult code = find_stream(w, stream, &on)) return code;
    std::shared_ptr<Capture> capture = on->capture;
    if (!capture) return CUDA_ERROR_INVALID_VALUE;
    if (capture->origin != on.get()) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    bool own = capture->thread == std::this_thread::get_id();
    if (!own && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    std::set<size_t> joined = on->frontier;
    for (size_t i = capture->nodes.size(); i-- > 0;) {
        if (!joined.count(i)) continue;
        joined.insert(capture->nodes[i].after.begin(), capture->nodes[i].after.end());
    }
    bool unjoined = false;
    for (const Stream &member : capture->members) {
        for (size_t node : member->frontier) unjoined |= !joined.count(node);
        member->capture = nullptr;
        member->frontier.clear();
    }
    capture->ended = true;
    auto &all = w.captures;
    all.erase(std::remove(all.begin(), all.end(), capture), all.end());
    capture->members.clear();
    *graph = nullptr;
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (unjoined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    *graph = new CUgraph_st{std::move(capture->nodes)};
    w.graphs.insert(*graph);
    return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    BEGIN(cuThreadExchangeStreamCaptureMode);
    if (*mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, mode_of_thread);
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long)
{
    BEGIN(cuGraphInstantiateWithFlags);
    if (!w.graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    *made = new CUgraphExec_st{graph->nodes};
    w.execs.insert(*made);
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream)
{
    BEGIN(cuGraphLaunch);
    if (!w.execs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    STREAM(on, stream);
    CUcontext context = on->context;
    submit(w, on, "cuGraphLaunch", [nodes = graph->nodes, context, &w] {
        return run_nodes(w, context, nodes);
    });
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph)
{
    BEGIN(cuGraphDestroy);
    if (!w.graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec graph)
{
    BEGIN(cuGraphExecDestroy);
    if (!w.execs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
    delete graph;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned flags)
{
    BEGIN(cuEventCreate);
    CURRENT(context);
    bool shared = flags & CU_EVENT_INTERPROCESS;
    if (flags > 7 || (shared && !(flags & CU_EVENT_DISABLE_TIMING))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto made = std::make_shared<CUevent_st>();
    made->context = context;
    made->flags = flags;
    if (shared) {
        made->cookie = cookie(w);
        void *at = make_file(sizeof(Marks), made->cookie, &made->fd);
        if (!at) return CUDA_ERROR_OUT_OF_MEMORY;
        made->marks = static_cast<Marks *>(at);
    }
    w.events[made.get()] = made;
    *event = made.get();
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event)
{
    BEGIN(cuEventDestroy_v2);
    auto found = find_event(w, event);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    // Work that is queued may still look at the marks, so they stay mapped.
    if (found->fd >= 0) close(found->fd);
    w.events.erase(event);
    return found->context->lost;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    BEGIN(cuEventRecord);
    auto found = find_event(w, event);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    STREAM(on, stream);
    if (found->context != on->context) return CUDA_ERROR_INVALID_HANDLE;
    if (on->capture) {
        found->capture = on->capture;
        found->captured = on->frontier;
        return CUDA_SUCCESS;
    }
    found->capture = nullptr;
    if (found->marks) {
        uint64_t number = ++found->marks->recorded;
        push(w, on, "cuEventRecord", [found, number] {
            uint64_t before = found->marks->done;
            while (before < number && !found->marks->done.compare_exchange_weak(before, number)) {}
            return CUresult(CUDA_SUCCESS);
        });
        return CUDA_SUCCESS;
    }
    auto record = found->last = std::make_shared<Record>();
    push(w, on, "cuEventRecord", [record, &w] {
        Lock lock(w.lock);
        record->nanos = now();
        record->done = true;
        w.moved.notify_all();
        return CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

static bool is_done(const CUevent_st &event)
{
    if (event.marks) return event.marks->done >= event.marks->recorded;
    return !event.last || event.last->done;
}

CUresult cuEventQuery(CUevent event)
{
    BEGIN(cuEventQuery);
    auto found = find_event(w, event);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult code = found->context->lost) return code;
    if (found->capture) {
        found->capture->invalid = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    SAFE();
    return is_done(*found) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent event)
{
    BEGIN(cuEventSynchronize);
    auto found = find_event(w, event);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    if (found->capture) {
        found->capture->invalid = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    SAFE();
    // What another process records is not told to this one.
    while (!is_done(*found) && !found->context->lost) {
        w.moved.wait_for(lock, std::chrono::microseconds(found->marks ? 50 : 100000));
    }
    return found->context->lost;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end)
{
    BEGIN(cuEventElapsedTime);
    auto first = find_event(w, start), last = find_event(w, end);
    if (!first || !last) return CUDA_ERROR_INVALID_HANDLE;
    if (first->capture || last->capture) return CUDA_ERROR_CAPTURED_EVENT;
    for (auto &event : {first, last}) {
        bool timed = !(event->flags & CU_EVENT_DISABLE_TIMING) && event->last;
        if (!timed) return CUDA_ERROR_INVALID_HANDLE;
        if (CUresult code = event->context->lost) return code;
    }
    if (!is_done(*first) || !is_done(*last)) return CUDA_ERROR_NOT_READY;
    *milliseconds = float(last->last->nanos - first->last->nanos) / 1e6f;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
    BEGIN(cuMemAlloc_v2);
    CURRENT(context);
    SAFE();
    return make_memory(w, context, at, bytes, Kind::Device, false);
}

CUresult cuMemFree_v2(CUdeviceptr at)
{
    BEGIN(cuMemFree_v2);
    auto range = w.ranges.find(at);
    bool ours = range != w.ranges.end() && (range->second.kind == Kind::Device ||
                                            range->second.kind == Kind::Managed);
    if (!ours) return CUDA_ERROR_INVALID_VALUE;
    SAFE();
    CUcontext context = w.devices[size_t(range->second.ordinal)].get();
    // What runs may still use it.
    drain_all(w, lock, context);
    free_memory(w, at);
    return context->lost;
}

CUresult cuMemAllocAsync(CUdeviceptr *at, size_t bytes, CUstream stream)
{
    BEGIN(cuMemAllocAsync);
    STREAM(on, stream);
    if (on->capture) return CUDA_ERROR_NOT_SUPPORTED;
    return make_memory(w, on->context, at, bytes, Kind::Device, true);
}

CUresult cuMemFreeAsync(CUdeviceptr at, CUstream stream)
{
    BEGIN(cuMemFreeAsync);
    STREAM(on, stream);
    auto range = w.ranges.find(at);
    if (range == w.ranges.end() || range->second.kind != Kind::Device) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (on->capture) return CUDA_ERROR_NOT_SUPPORTED;
    push(w, on, "cuMemFreeAsync", [at, &w] {
        Lock lock(w.lock);
        if (w.ranges.count(at)) free_memory(w, at);
        return CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

CUresult cuMemAllocManaged(CUdeviceptr *at, size_t bytes, unsigned flags)
{
    BEGIN(cuMemAllocManaged);
    CURRENT(context);
    if (flags != CU_MEM_ATTACH_GLOBAL) return CUDA_ERROR_INVALID_VALUE;
    SAFE();
    return make_memory(w, context, at, bytes, Kind::Managed, false);
}

CUresult cuMemGetInfo_v2(size_t *left, size_t *total)
{
    BEGIN(cuMemGetInfo_v2);
    CURRENT(context);
    *left = w.memory - context->used;
    *total = w.memory;
    return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr at)
{
    BEGIN(cuMemGetAddressRange_v2);
    auto range = find_range(w, at);
    if (range == w.ranges.end() || !of_device(range->second)) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = range->first;
    if (bytes) *bytes = range->second.bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned flags)
{
    BEGIN(cuMemHostAlloc);
    CURRENT(context);
    if (!bytes || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    SAFE();
    void *made = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    w.ranges[reinterpret_cast<uintptr_t>(made)] = {bytes, Kind::Pinned, context->ordinal, -1, 0,
                                                   false, 1};
    *at = made;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *at)
{
    BEGIN(cuMemFreeHost);
    auto range = w.ranges.find(reinterpret_cast<uintptr_t>(at));
    if (range == w.ranges.end() || range->second.kind != Kind::Pinned) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    SAFE();
    CUcontext context = w.devices[size_t(range->second.ordinal)].get();
    drain_all(w, lock, context);
    free_memory(w, range->first);
    return context->lost;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned flags)
{
    BEGIN(cuMemHostGetDevicePointer_v2);
    auto range = find_range(w, reinterpret_cast<uintptr_t>(host));
    if (flags || range == w.ranges.end() || of_device(range->second)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *device = reinterpret_cast<uintptr_t>(host);
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void *at, size_t bytes, unsigned)
{
    BEGIN(cuMemHostRegister_v2);
    CURRENT(context);
    if (!at || !bytes) return CUDA_ERROR_INVALID_VALUE;
    SAFE();
    uintptr_t begin = reinterpret_cast<uintptr_t>(at);
    auto next = w.ranges.lower_bound(begin);
    bool before = find_range(w, begin) != w.ranges.end();
    if (before || (next != w.ranges.end() && next->first < begin + bytes)) {
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    w.ranges[begin] = {bytes, Kind::Registered, context->ordinal, -1, 0, false, 1};
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *at)
{
    BEGIN(cuMemHostUnregister);
    auto range = w.ranges.find(reinterpret_cast<uintptr_t>(at));
    if (range == w.ranges.end() || range->second.kind != Kind::Registered) {
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    }
    SAFE();
    CUcontext context = w.devices[size_t(range->second.ordinal)].get();
    drain_all(w, lock, context);
    w.ranges.erase(reinterpret_cast<uintptr_t>(at));
    return context->lost;
}

CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **values,
                                CUdeviceptr at)
{
    BEGIN(cuPointerGetAttributes);
    auto it = find_range(w, at);
    const Range *range = it == w.ranges.end() ? nullptr : &it->second;
    for (unsigned i = 0; i < count; i++) {
        switch (attributes[i]) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: {
            unsigned known = range && of_device(*range) ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
            unsigned type = range ? known : 0;
            memcpy(values[i], &type, sizeof type);
            break;
        }
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: {
            unsigned managed = range && range->kind == Kind::Managed;
            memcpy(values[i], &managed, sizeof managed);
            break;
        }
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: {
            int ordinal = range ? range->ordinal : -2;
            memcpy(values[i], &ordinal, sizeof ordinal);
            break;
        }
        default: return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return CUDA_SUCCESS;
}

// Where one end of a copy may be.
enum { HOST = 1, DEVICE = 2 };

// A copy on a stream. Plain host memory is read before this returns, or written when it does.
static CUresult copy(World &w, Lock &lock, const char *what, uintptr_t target, int target_is,
                     uintptr_t source, int source_is, size_t bytes, CUstream stream)
{
    STREAM(on, stream);
    if (!bytes) return CUDA_SUCCESS;
    auto to = find_range(w, target, bytes), from = find_range(w, source, bytes);
    auto fits = [&](auto it, uintptr_t at, int wanted) {
        if (it != w.ranges.end()) return bool(wanted & (of_device(it->second) ? DEVICE : HOST));
        // It begins in memory that is known, and goes past its end.
        return (wanted & HOST) && find_range(w, at) == w.ranges.end();
    };
    // Pinned memory has an address on the device too.
    if (to != w.ranges.end()) target_is |= HOST;
    if (from != w.ranges.end()) source_is |= HOST;
    if (!fits(to, target, target_is) || !fits(from, source, source_is)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto *into = reinterpret_cast<void *>(target);
    auto *out_of = reinterpret_cast<const char *>(source);
    bool plain_source = from == w.ranges.end(), plain_target = to == w.ranges.end();
    if (plain_source && !on->capture) {
        auto staged = std::make_shared<std::vector<char>>(out_of, out_of + bytes);
        push(w, on, what, [=] {
            memcpy(into, staged->data(), bytes);
            return CUresult(CUDA_SUCCESS);
        });
    } else {
        submit(w, on, what, [=] {
            memmove(into, out_of, bytes);
            return CUresult(CUDA_SUCCESS);
        });
    }
    if (!plain_target || on->capture) return CUDA_SUCCESS;
    drain(w, lock, on);
    return on->context->lost;
}

CUresult cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    BEGIN(cuMemcpyAsync);
    return copy(w, lock, "cuMemcpyAsync", target, HOST | DEVICE, source, HOST | DEVICE, bytes,
                stream);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream stream)
{
    BEGIN(cuMemcpyHtoDAsync_v2);
    return copy(w, lock, "cuMemcpyHtoDAsync_v2", target, DEVICE,
                reinterpret_cast<uintptr_t>(source), HOST, bytes, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    BEGIN(cuMemcpyDtoHAsync_v2);
    return copy(w, lock, "cuMemcpyDtoHAsync_v2", reinterpret_cast<uintptr_t>(target), HOST, source,
                DEVICE, bytes, stream);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream)
{
    BEGIN(cuMemcpyDtoDAsync_v2);
    return copy(w, lock, "cuMemcpyDtoDAsync_v2", target, DEVICE, source, DEVICE, bytes, stream);
}

CUresult cuMemcpyPeerAsync(CUdeviceptr target, CUcontext target_context, CUdeviceptr source,
                           CUcontext source_context, size_t bytes, CUstream stream)
{
    BEGIN(cuMemcpyPeerAsync);
    if (!target_context || !source_context) return CUDA_ERROR_INVALID_CONTEXT;
    auto to = find_range(w, target), from = find_range(w, source);
    auto belongs = [&](auto it, CUcontext context) {
        return it != w.ranges.end() && it->second.ordinal == context->ordinal;
    };
    if (!belongs(to, target_context) || !belongs(from, source_context)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy(w, lock, "cuMemcpyPeerAsync", target, DEVICE, source, DEVICE, bytes, stream);
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream stream)
{
    BEGIN(cuMemsetD8Async);
    STREAM(on, stream);
    if (!count) return CUDA_SUCCESS;
    if (find_range(w, target, count) == w.ranges.end()) return CUDA_ERROR_INVALID_VALUE;
    submit(w, on, "cuMemsetD8Async", [=] {
        memset(reinterpret_cast<void *>(target), value, count);
        return CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr at)
{
    BEGIN(cuIpcGetMemHandle);
    auto it = find_range(w, at);
    bool shared = it != w.ranges.end() && it->second.kind == Kind::Device && !it->second.ordered;
    if (!shared) return CUDA_ERROR_INVALID_VALUE;
    Name name{"standin", getpid(), it->second.fd, it->second.cookie, it->second.bytes,
              it->second.ordinal};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &name, sizeof name);
    return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *at, CUipcMemHandle handle, unsigned flags)
{
    BEGIN(cuIpcOpenMemHandle_v2);
    CURRENT(context);
    if (flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
    Name name;
    memcpy(&name, &handle, sizeof name);
    if (memcmp(name.mark, "standin", 8) || !is_device(w, name.ordinal)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // A process does not open what is its own.
    if (name.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    if (name.ordinal != context->ordinal) {
        if (!w.peers) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
        context->peers.insert(name.ordinal);
    }
    for (auto &[base, range] : w.ranges) {
        if (range.kind != Kind::Opened || range.cookie != name.cookie) continue;
        range.references++;
        *at = base;
        return CUDA_SUCCESS;
    }
    void *made = open_file(name, name.bytes);
    if (!made) return CUDA_ERROR_INVALID_HANDLE;
    uintptr_t address = reinterpret_cast<uintptr_t>(made);
    w.ranges[address] = {name.bytes, Kind::Opened, name.ordinal, -1, name.cookie, false, 1};
    *at = address;
    return CUDA_SUCCESS;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr at)
{
    BEGIN(cuIpcCloseMemHandle);
    auto it = w.ranges.find(at);
    if (it == w.ranges.end() || it->second.kind != Kind::Opened) return CUDA_ERROR_INVALID_VALUE;
    if (--it->second.references > 0) return CUDA_SUCCESS;
    drain_all(w, lock, w.devices[size_t(it->second.ordinal)].get());
    if (CUcontext context = current()) drain_all(w, lock, context);
    free_memory(w, at);
    return CUDA_SUCCESS;
}

CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event)
{
    BEGIN(cuIpcGetEventHandle);
    auto found = find_event(w, event);
    if (!found || found->fd < 0) return CUDA_ERROR_INVALID_HANDLE;
    Name name{"standev", getpid(), found->fd, found->cookie, sizeof(Marks),
              found->context->ordinal};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &name, sizeof name);
    return CUDA_SUCCESS;
}

CUresult cuIpcOpenEventHandle(CUevent *event, CUipcEventHandle handle)
{
    BEGIN(cuIpcOpenEventHandle);
    CURRENT(context);
    Name name;
    memcpy(&name, &handle, sizeof name);
    if (memcmp(name.mark, "standev", 8)) return CUDA_ERROR_INVALID_VALUE;
    if (name.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
    void *at = open_file(name, sizeof(Marks));
    if (!at) return CUDA_ERROR_INVALID_HANDLE;
    auto made = std::make_shared<CUevent_st>();
    made->context = context;
    made->flags = CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING;
    made->marks = static_cast<Marks *>(at);
    w.events[made.get()] = made;
    *event = made.get();
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    BEGIN(cuModuleLoadData);
    CURRENT(context);
    if (!image) return CUDA_ERROR_INVALID_VALUE;
    SAFE();
    *module = new CUmod_st{context, {}};
    w.modules.insert(*module);
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module)
{
    BEGIN(cuModuleUnload);
    if (!w.modules.erase(module)) return CUDA_ERROR_INVALID_HANDLE;
    CUcontext context = module->context;
    drain_all(w, lock, context);
    delete module;
    return context->lost;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    BEGIN(cuModuleGetFunction);
    if (!w.modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    if (!unisono_twin_has || !unisono_twin_has(name)) return CUDA_ERROR_NOT_FOUND;
    auto &slot = module->functions[name];
    if (!slot) slot.reset(new CUfunc_st{module, name});
    *function = slot.get();
    return CUDA_SUCCESS;
}

// The one struct that kernels take: as long as its twin says, else what can be read of 4 KiB.
static std::vector<char> copy_arguments(const char *name, void **arguments)
{
    if (!arguments || !arguments[0]) return {};
    const char *from = static_cast<const char *>(arguments[0]);
    if (unisono_twin_size) return std::vector<char>(from, from + unisono_twin_size(name));
    std::vector<char> read(4096);
    size_t first = 4096 - reinterpret_cast<uintptr_t>(from) % 4096;
    iovec local{read.data(), read.size()};
    iovec remote[2] = {{arguments[0], first}, {const_cast<char *>(from) + first, 4096 - first}};
    ssize_t got = process_vm_readv(getpid(), &local, 1, remote, first < 4096 ? 2 : 1, 0);
    read.resize(got > 0 ? size_t(got) : 0);
    return read;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned,
                        CUstream stream, void **arguments, void **extra)
{
    BEGIN(cuLaunchKernel);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    STREAM(on, stream);
    if (function->module->context != on->context) return CUDA_ERROR_INVALID_HANDLE;
    uint64_t grid = uint64_t(grid_x) * grid_y * grid_z;
    uint64_t block = uint64_t(block_x) * block_y * block_z;
    if (!grid || grid > INT32_MAX || !block || block > 1024 || extra) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!unisono_twin_launch) return CUDA_ERROR_NOT_FOUND;
    std::vector<char> copied = copy_arguments(function->name.c_str(), arguments);
    // A word that is an address on a device without peer access would be followed there in vain.
    bool astray = false;
    for (size_t i = 0; i + 8 <= copied.size() && unisono_twin_size; i += 8) {
        uint64_t word;
        memcpy(&word, copied.data() + i, 8);
        auto range = find_range(w, word);
        astray |= range != w.ranges.end() && !reaches(on->context, range->second);
    }
    std::string name = function->name;
    submit(w, on, "cuLaunchKernel", [=] {
        if (astray) return CUresult(CUDA_ERROR_ILLEGAL_ADDRESS);
        alignas(16) char aligned[4096];
        memcpy(aligned, copied.data(), std::min(copied.size(), sizeof aligned));
        int code = unisono_twin_launch(name.c_str(), unsigned(grid), unsigned(block), aligned);
        return code ? CUresult(CUDA_ERROR_LAUNCH_FAILED) : CUresult(CUDA_SUCCESS);
    });
    return CUDA_SUCCESS;
}

}  // extern "C"
