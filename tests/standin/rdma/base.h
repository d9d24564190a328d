// Settings, chance, clocks, and events behind a file descriptor.
#pragma once

#include <algorithm>
#include <arpa/inet.h>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <map>
#include <memory>
#include <mutex>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <random>
#include <set>
#include <signal.h>
#include <string>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

std::string setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/// The number of a setting, or what it is without one.
long number(const char *name, long otherwise) {
    std::string value = setting(name);
    return value.empty() ? otherwise : atol(value.c_str());
}

/// The second number of a setting whose first is this device's, else -1.
long number_of_device(const char *name, int device) {
    std::string value = setting(name);
    size_t colon = value.find(':');
    if (colon == std::string::npos || atoi(value.c_str()) != device) return -1;
    return atol(value.c_str() + colon + 1);
}

bool is_iwarp() {
    static bool is = number("STANDIN_RDMA_IWARP", 0) != 0;
    return is;
}

/// A chance number. Under the world's lock.
uint32_t chance() {
    static std::mt19937 made(setting("STANDIN_RDMA_SEED").empty()
                                 ? std::random_device{}()
                                 : uint32_t(number("STANDIN_RDMA_SEED", 0)));
    return uint32_t(made());
}

/// What tests should see of mistakes that hardware would not explain either.
__attribute__((format(printf, 1, 2))) void say(const char *format, ...) {
    char text[300];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    fprintf(stderr, "standin rdma: %s\n", text);
}

/// Fails the way these libraries do: a code in errno.
int fail(int code) {
    errno = code;
    return -1;
}
template <class T> T *none(int code) {
    errno = code;
    return nullptr;
}

/// The file descriptor of a queue of events: as many tokens as events, or more where events have
/// been taken back. Reading blocks, unless O_NONBLOCK is set.
struct Tokens {
    int fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);

    Tokens() = default;
    Tokens(const Tokens &) = delete;
    ~Tokens() { close(fd); }

    void give() {
        uint64_t one = 1;
        (void)!write(fd, &one, sizeof one);
    }
    bool take() {
        uint64_t one;
        return read(fd, &one, sizeof one) == sizeof one;
    }
};

} // namespace
