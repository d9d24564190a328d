/* unisono.hpp: the C++17 face of unisono.h. Header-only; links with the same library.
 *
 *   auto comm = unisono::communicator::from_environment();
 *   std::vector<float> gradient = backward();
 *   comm.all_reduce(gradient, unisono::op::sum);                        // in place, blocking
 *   unisono::request later = comm.iall_reduce(gradient, unisono::op::avg);
 *   later.wait();
 *
 * Every function comes twice. The plain one throws unisono::error; `try_` before its name gives the
 * same call that returns unisono::result<T>, a value or a failure, and throws nothing but what
 * running out of memory throws. With -fno-exceptions, or UNISONO_NO_EXCEPTIONS defined, only the
 * `try_` form exists.
 *
 * Buffers are anything with contiguous elements: vector, array, C array, span, unisono::memory. The
 * element type chooses the wire type; sizes are checked before the library is called.
 *
 * Objects are move-only and release what they hold when destroyed. Requests, memory, groups and
 * operations belong to a communicator and must be gone before it. Thread rule: as unisono.h, one
 * call at a time per communicator; abort() may come from any thread.
 */
#ifndef UNISONO_HPP
#define UNISONO_HPP

#include <array>
#include <cassert>
#include <chrono>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if __cplusplus >= 202002L
#include <span>
#endif

#include "unisono.h"

#if !defined(UNISONO_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define UNISONO_NO_EXCEPTIONS 1
#endif

/* Defines the throwing form of try_##name, which takes the same arguments. */
#ifdef UNISONO_NO_EXCEPTIONS
#define UNISONO_THROWING(name)
#define UNISONO_THROWING_STATIC(name)
#else
#define UNISONO_THROWING(name)                                                                     \
    template <class... Arguments>                                                                  \
    auto name(Arguments &&...arguments)                                                            \
    {                                                                                              \
        return this->try_##name(std::forward<Arguments>(arguments)...).value();                    \
    }
#define UNISONO_THROWING_STATIC(name)                                                              \
    template <class... Arguments>                                                                  \
    static auto name(Arguments &&...arguments)                                                     \
    {                                                                                              \
        return try_##name(std::forward<Arguments>(arguments)...).value();                          \
    }
#endif

namespace unisono {

/* ---- errors ---- */

/* What went wrong: a status of unisono.h and the text that names the offending value. */
class failure {
public:
    failure(int code, std::string text) : code_(code), text_(std::move(text)) {}

    /* Reads the last error of `comm`, or of this thread where it is NULL. */
    static failure last(int code, const unisono_comm_t *comm)
    {
        char text[1024] = "";
        if (unisono_last_error(comm, text, sizeof text) != UNISONO_OK || text[0] == '\0')
            return failure(code, unisono_status_text(code));
        return failure(code, text);
    }

    int code() const noexcept { return code_; }
    const char *name() const noexcept { return unisono_status_name(code_); }
    const std::string &text() const noexcept { return text_; }

private:
    int code_;
    std::string text_;
};

/* What the plain functions throw. */
class error : public std::exception {
public:
    explicit error(failure why)
        : why_(std::make_shared<failure>(std::move(why))),
          what_(std::make_shared<std::string>(std::string(why_->name()) + ": " + why_->text()))
    {
    }

    int code() const noexcept { return why_->code(); }
    const failure &why() const noexcept { return *why_; }
    const char *what() const noexcept override { return what_->c_str(); }

private: /* shared, because copying an exception must not throw */
    std::shared_ptr<const failure> why_;
    std::shared_ptr<const std::string> what_;
};

/* A value or a failure. */
template <class T>
class [[nodiscard]] result {
public:
    result(T value) : value_(std::move(value)) {}
    result(failure why) : failure_(std::move(why)) {}

    bool has_value() const noexcept { return value_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }

    /* Only where has_value(). */
    T &operator*() & { return *value_; }
    const T &operator*() const & { return *value_; }
    T &&operator*() && { return std::move(*value_); }
    T *operator->() { return &*value_; }
    const T *operator->() const { return &*value_; }

    /* Only where not has_value(). */
    const failure &error() const
    {
        assert(failure_);
        return *failure_;
    }
    int code() const noexcept { return failure_ ? failure_->code() : UNISONO_OK; }

#ifndef UNISONO_NO_EXCEPTIONS
    /* The value, or its failure thrown. */
    T value() &&
    {
        if (failure_)
            throw unisono::error(std::move(*failure_));
        return std::move(*value_);
    }
#endif

private:
    std::optional<T> value_;
    std::optional<failure> failure_;
};

template <>
class [[nodiscard]] result<void> {
public:
    result() = default;
    result(failure why) : failure_(std::move(why)) {}

    bool has_value() const noexcept { return !failure_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }
    const failure &error() const
    {
        assert(failure_);
        return *failure_;
    }
    int code() const noexcept { return failure_ ? failure_->code() : UNISONO_OK; }

#ifndef UNISONO_NO_EXCEPTIONS
    void value() &&
    {
        if (failure_)
            throw unisono::error(std::move(*failure_));
    }
#endif

private:
    std::optional<failure> failure_;
};

/* ---- elements ---- */

/* Floating-point formats without a C++ type: bits that travel and are reduced as numbers. */
struct f16 {
    std::uint16_t bits;
};
struct bf16 {
    std::uint16_t bits;
};
struct f8e4m3 {
    std::uint8_t bits;
};
struct f8e5m2 {
    std::uint8_t bits;
};

namespace detail {

template <class T>
constexpr bool is_number =
    std::is_integral_v<T> && !std::is_same_v<T, bool> && !std::is_same_v<T, char> &&
    !std::is_same_v<T, wchar_t> && !std::is_same_v<T, char16_t> && !std::is_same_v<T, char32_t>;

/* The UNISONO_* number of an element type, or -1. */
template <class T>
constexpr int find_dtype()
{
    if constexpr (is_number<T>) {
        constexpr int base = sizeof(T) == 1   ? UNISONO_I8
                             : sizeof(T) == 2 ? UNISONO_I16
                             : sizeof(T) == 4 ? UNISONO_I32
                                              : UNISONO_I64;
        return base + (std::is_unsigned_v<T> ? 1 : 0); /* each U follows its I */
    }
    return std::is_same_v<T, std::byte>                 ? UNISONO_U8
           : std::is_same_v<T, f16>                     ? UNISONO_F16
           : std::is_same_v<T, bf16>                    ? UNISONO_BF16
           : std::is_same_v<T, f8e4m3>                  ? UNISONO_F8E4M3
           : std::is_same_v<T, f8e5m2>                  ? UNISONO_F8E5M2
           : std::is_same_v<T, float>                   ? UNISONO_F32
           : std::is_same_v<T, double>                  ? UNISONO_F64
           : std::is_same_v<T, std::complex<float>>     ? UNISONO_COMPLEX64
           : std::is_same_v<T, std::complex<double>>    ? UNISONO_COMPLEX128
                                                        : -1;
}

} // namespace detail

/* The element type on the wire of T. */
template <class T>
constexpr int dtype_of = [] {
    constexpr int found = detail::find_dtype<std::remove_cv_t<T>>();
    static_assert(found >= 0, "unisono has no element type for this C++ type");
    return found;
}();

/* ---- spans ---- */

#if defined(__cpp_lib_span)
template <class T>
using span = std::span<T>;
#else
/* As much of C++20's std::span as is needed here. */
template <class T>
class span {
public:
    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Container,
              class = std::enable_if_t<std::is_convertible_v<
                  std::remove_pointer_t<decltype(std::data(std::declval<Container &>()))> (*)[],
                  T (*)[]>>>
    constexpr span(Container &&container) noexcept
        : data_(std::data(container)), size_(std::size(container))
    {
    }

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t index) const { return data_[index]; }
    constexpr span subspan(std::size_t offset, std::size_t count) const
    {
        return span(data_ + offset, count);
    }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

namespace detail {

template <class Buffer>
using element = std::remove_pointer_t<decltype(std::data(std::declval<Buffer &>()))>;

/* What the library may write to. */
template <class Buffer>
auto writable(Buffer &&buffer) noexcept
{
    static_assert(!std::is_const_v<element<Buffer>>, "the receive buffer is const");
    return span<element<Buffer>>(std::data(buffer), std::size(buffer));
}

/* What it only reads. */
template <class Buffer>
auto readable(const Buffer &buffer) noexcept
{
    return span<const element<const Buffer>>(std::data(buffer), std::size(buffer));
}

template <class Send, class Recv>
constexpr bool same_element =
    std::is_same_v<std::remove_cv_t<element<Send>>, std::remove_cv_t<element<Recv>>>;

inline failure wrong_size(const char *what, std::size_t is, std::size_t should_be)
{
    return failure(UNISONO_INVALID_ARGUMENT, std::string(what) + " has " + std::to_string(is) +
                                                 " elements, not " + std::to_string(should_be));
}

} // namespace detail

/* One number for every rank, as the v forms take them. */
using counts = span<const std::uint64_t>;

/* ---- settings ---- */

enum class op : int {
    sum = UNISONO_SUM,
    prod = UNISONO_PROD,
    min = UNISONO_MIN,
    max = UNISONO_MAX,
    avg = UNISONO_AVG,
    band = UNISONO_BAND,
    bor = UNISONO_BOR,
    bxor = UNISONO_BXOR,
    land = UNISONO_LAND,
    lor = UNISONO_LOR,
};

/* As unisono_config_t; what is left alone has the library's default. */
struct config {
    std::chrono::milliseconds timeout{0};      /* -1 ms: no deadline */
    std::chrono::milliseconds init_timeout{0};
    std::optional<bool> deterministic;
    std::optional<bool> progress_thread;
    std::string links, interface, name, backend;

    /* Points into this object. */
    unisono_config_t native() const
    {
        unisono_config_t settings = UNISONO_CONFIG_INIT;
        settings.timeout_ms = timeout.count();
        settings.init_timeout_ms = init_timeout.count();
        settings.deterministic = deterministic ? (*deterministic ? 1 : 0) : -1;
        settings.progress_thread = progress_thread ? (*progress_thread ? 1 : 0) : -1;
        settings.links = links.empty() ? nullptr : links.c_str();
        settings.interface = interface.empty() ? nullptr : interface.c_str();
        settings.name = name.empty() ? nullptr : name.c_str();
        settings.backend = backend.empty() ? nullptr : backend.c_str();
        return settings;
    }
};

/* The secret that the ranks of a job share: made by one, handed to the others by the caller. */
class unique_id {
public:
    unique_id() noexcept : id_{} {}
    explicit unique_id(const unisono_unique_id_t &id) noexcept : id_(id) {}

    static result<unique_id> try_create()
    {
        unique_id id;
        int status = unisono_get_unique_id(&id.id_);
        if (status != UNISONO_OK)
            return failure::last(status, nullptr);
        return id;
    }
    UNISONO_THROWING_STATIC(create)

    span<std::uint8_t> bytes() noexcept { return {id_.bytes, sizeof id_.bytes}; }
    span<const std::uint8_t> bytes() const noexcept { return {id_.bytes, sizeof id_.bytes}; }
    const unisono_unique_id_t &native() const noexcept { return id_; }

private:
    unisono_unique_id_t id_;
};

/* Wait for as long as the communicator's own deadline allows. */
inline constexpr std::chrono::milliseconds no_timeout{-1};

/* ---- requests ---- */

/* A call in progress. Its buffers belong to the library until it is complete, so the destructor
 * waits; a failure found there goes unseen: wait() for what matters. */
class request {
public:
    request() noexcept = default;
    request(unisono_request_t *handle, unisono_comm_t *comm) noexcept : handle_(handle), comm_(comm)
    {
    }
    request(request &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), comm_(other.comm_)
    {
    }
    request &operator=(request &&other) noexcept
    {
        if (this != &other) {
            finish();
            handle_ = std::exchange(other.handle_, nullptr);
            comm_ = other.comm_;
        }
        return *this;
    }
    ~request() { finish(); }

    /* True until completion has been reported. */
    bool pending() const noexcept { return handle_ != nullptr; }
    unisono_request_t *native() const noexcept { return handle_; }

    /* Whether the call is complete. */
    result<bool> try_test()
    {
        int done = 1;
        int status = handle_ ? unisono_test(&handle_, &done) : UNISONO_OK;
        if (status != UNISONO_OK)
            return failure::last(status, comm_);
        return done != 0;
    }
    UNISONO_THROWING(test)

    /* Waits; false where the time ran out first. */
    result<bool> try_wait(std::chrono::milliseconds timeout = no_timeout)
    {
        int status = handle_ ? unisono_wait(&handle_, timeout.count()) : UNISONO_OK;
        if (status != UNISONO_OK && status != UNISONO_IN_PROGRESS)
            return failure::last(status, comm_);
        return status == UNISONO_OK;
    }
    UNISONO_THROWING(wait)

private:
    friend result<std::optional<std::size_t>> try_wait_any(span<request>,
                                                           std::chrono::milliseconds);

    void finish() noexcept
    {
        if (handle_)
            (void)unisono_wait(&handle_, -1);
    }

    unisono_request_t *handle_ = nullptr;
    unisono_comm_t *comm_ = nullptr;
};

/* Waits for one of the pending requests and gives its index; nothing where the time ran out or none
 * is pending. */
inline result<std::optional<std::size_t>>
try_wait_any(span<request> requests, std::chrono::milliseconds timeout = no_timeout)
{
    constexpr std::size_t few = 64; /* more than this needs the heap */
    std::array<unisono_request_t *, few> local;
    std::vector<unisono_request_t *> heap(requests.size() > few ? requests.size() : 0);
    unisono_request_t **handles = requests.size() > few ? heap.data() : local.data();
    std::size_t index = requests.size(), pending = 0;
    for (std::size_t i = 0; i < requests.size(); i++) {
        handles[i] = requests[i].handle_;
        pending += handles[i] != nullptr;
    }
    if (pending == 0)
        return std::optional<std::size_t>();
    int status = unisono_wait_any(handles, requests.size(), timeout.count(), &index);
    unisono_comm_t *comm = nullptr;
    for (std::size_t i = 0; i < requests.size(); i++) {
        if (requests[i].handle_ && !handles[i])
            comm = requests[i].comm_; /* of the request that ended */
        requests[i].handle_ = handles[i];
    }
    if (status == UNISONO_IN_PROGRESS)
        return std::optional<std::size_t>();
    if (status != UNISONO_OK)
        return failure::last(status, comm);
    return std::optional<std::size_t>(index);
}

#ifndef UNISONO_NO_EXCEPTIONS
inline std::optional<std::size_t> wait_any(span<request> requests,
                                           std::chrono::milliseconds timeout = no_timeout)
{
    return try_wait_any(requests, timeout).value();
}
#endif

/* ---- memory and operations ---- */

/* `size` zeroed elements that other ranks of this host can map: the fastest buffers to use. */
template <class T>
class memory {
public:
    static_assert(std::is_trivially_copyable_v<T>, "unisono::memory holds plain data");

    memory() noexcept = default;
    memory(T *data, std::size_t size, unisono_comm_t *comm) noexcept
        : data_(data), size_(size), comm_(comm)
    {
    }
    memory(memory &&other) noexcept { swap(other); }
    memory &operator=(memory &&other) noexcept
    {
        memory(std::move(other)).swap(*this);
        return *this;
    }
    ~memory()
    {
        if (data_)
            (void)unisono_mem_free(comm_, data_);
    }

    T *data() noexcept { return data_; }
    const T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    T *begin() noexcept { return data_; }
    T *end() noexcept { return data_ + size_; }
    const T *begin() const noexcept { return data_; }
    const T *end() const noexcept { return data_ + size_; }
    T &operator[](std::size_t index) { return data_[index]; }
    const T &operator[](std::size_t index) const { return data_[index]; }

    void swap(memory &other) noexcept
    {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(comm_, other.comm_);
    }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
    unisono_comm_t *comm_ = nullptr;
};

/* An operation that multiplies this rank's input by a scalar before summing. */
class pre_mul_sum {
public:
    pre_mul_sum(int value, unisono_comm_t *comm) noexcept : value_(value), comm_(comm) {}
    pre_mul_sum(pre_mul_sum &&other) noexcept
        : value_(other.value_), comm_(std::exchange(other.comm_, nullptr))
    {
    }
    pre_mul_sum &operator=(pre_mul_sum &&other) noexcept
    {
        std::swap(value_, other.value_);
        std::swap(comm_, other.comm_);
        return *this;
    }
    ~pre_mul_sum()
    {
        if (comm_)
            (void)unisono_op_destroy(comm_, value_);
    }

    int value() const noexcept { return value_; }

private:
    int value_;
    unisono_comm_t *comm_;
};

/* How a call reduces: one of unisono::op, or a pre_mul_sum. */
class reduction {
public:
    constexpr reduction(op which) noexcept : value_(static_cast<int>(which)) {}
    reduction(const pre_mul_sum &which) noexcept : value_(which.value()) {}
    constexpr int value() const noexcept { return value_; }

private:
    int value_;
};

/* ---- communicators ---- */

/* The ranks of a job, or some of them; this process is one.
 *
 * Each collective X comes as X (blocking, throws), try_X (blocking, returns a result), iX and
 * try_iX (the same two, returning a request at once). In the signatures `send` is read, `recv`
 * written; a form with `buffer` alone works in place. Where only the root sends or receives, the
 * other ranks may pass an empty buffer of the same element type.
 */
class communicator {
public:
    /* A null communicator, as split() gives to ranks that stay out. */
    communicator() noexcept = default;
    /* Takes over a handle of the C interface. */
    explicit communicator(unisono_comm_t *handle) noexcept : handle_(handle)
    {
        if (handle_ && (unisono_comm_rank(handle_, &rank_) != UNISONO_OK ||
                        unisono_comm_world_size(handle_, &world_) != UNISONO_OK))
            rank_ = world_ = 0;
    }
    communicator(communicator &&other) noexcept { swap(other); }
    communicator &operator=(communicator &&other) noexcept
    {
        communicator(std::move(other)).swap(*this);
        return *this;
    }
    ~communicator()
    {
        if (handle_)
            (void)unisono_comm_destroy(handle_);
    }

    /* Rank, world and rendezvous from the launcher's environment variables. */
    static result<communicator> try_from_environment(const config &settings = {})
    {
        unisono_comm_t *handle = nullptr;
        unisono_config_t native = settings.native();
        int status = unisono_comm_init_env(&handle, &native);
        return adopt(status, handle);
    }
    UNISONO_THROWING_STATIC(from_environment)

    /* The ranks of an MPI_Comm, given as an address: see unisono_comm_init_mpi. */
    static result<communicator> try_from_mpi(void *mpi_comm, const config &settings = {})
    {
        unisono_comm_t *handle = nullptr;
        unisono_config_t native = settings.native();
        int status = unisono_comm_init_mpi(&handle, mpi_comm, &native);
        return adopt(status, handle);
    }
    UNISONO_THROWING_STATIC(from_mpi)

    /* Blocks until all `world` ranks have called it with the same id. */
    static result<communicator> try_from_id(const unique_id &id, int world, int rank,
                                            const config &settings = {})
    {
        unisono_comm_t *handle = nullptr;
        unisono_config_t native = settings.native();
        int status = unisono_comm_init_rank(&handle, world, &id.native(), rank, &native);
        return adopt(status, handle);
    }
    UNISONO_THROWING_STATIC(from_id)

    /* One communicator for each of `world` threads of this process. */
    static result<std::vector<communicator>> try_for_threads(int world,
                                                             const config &settings = {})
    {
        std::vector<unisono_comm_t *> handles(world > 0 ? static_cast<std::size_t>(world) : 1);
        std::vector<communicator> all;
        all.reserve(handles.size());
        unisono_config_t native = settings.native();
        int status = unisono_comm_init_all(handles.data(), world, &native);
        if (status != UNISONO_OK)
            return failure::last(status, nullptr);
        for (unisono_comm_t *handle : handles)
            all.emplace_back(handle);
        return all;
    }
    UNISONO_THROWING_STATIC(for_threads)

    int rank() const noexcept { return rank_; }
    int world_size() const noexcept { return world_; }
    /* UNISONO_OK while usable, else the status that broke it. */
    int status() const noexcept { return unisono_comm_status(handle_); }
    explicit operator bool() const noexcept { return handle_ != nullptr; }
    unisono_comm_t *native() const noexcept { return handle_; }
    /* Gives the handle away. */
    unisono_comm_t *release() noexcept { return std::exchange(handle_, nullptr); }

    void swap(communicator &other) noexcept
    {
        std::swap(handle_, other.handle_);
        std::swap(rank_, other.rank_);
        std::swap(world_, other.world_);
    }

    /* Ranks of equal color form a communicator, ordered by key; a negative color gets none. */
    result<communicator> try_split(int color, int key = 0)
    {
        unisono_comm_t *split = nullptr;
        int status = unisono_comm_split(handle_, color, key, &split);
        if (status != UNISONO_OK)
            return failure::last(status, handle_);
        return communicator(split);
    }
    UNISONO_THROWING(split)

    /* The ranks that are left when some have died; this communicator stays broken. */
    result<communicator> try_shrink()
    {
        unisono_comm_t *shrunk = nullptr;
        int status = unisono_comm_shrink(handle_, &shrunk);
        if (status != UNISONO_OK)
            return failure::last(status, handle_);
        return communicator(shrunk);
    }
    UNISONO_THROWING(shrink)

    /* What the destructor does, with its outcome. */
    result<void> try_destroy()
    {
        int status = handle_ ? unisono_comm_destroy(std::exchange(handle_, nullptr)) : UNISONO_OK;
        return status == UNISONO_OK ? result<void>() : failure::last(status, nullptr);
    }
    UNISONO_THROWING(destroy)

    /* From here on calls on device memory have their place in `stream`, a CUstream or cudaStream_t:
     * they return at once. */
    result<void> try_set_stream(void *stream)
    {
        return outcome(unisono_comm_set_stream(handle_, stream));
    }
    UNISONO_THROWING(set_stream)

    /* From here on they wait for their end, as at first. */
    result<void> try_clear_stream() { return outcome(unisono_comm_clear_stream(handle_)); }
    UNISONO_THROWING(clear_stream)

    /* Memory that calls will use often, which stays until it is deregistered. */
    result<void> try_register_memory(void *memory, std::size_t bytes)
    {
        return outcome(unisono_mem_register(handle_, memory, bytes));
    }
    UNISONO_THROWING(register_memory)
    result<void> try_deregister_memory(void *memory)
    {
        return outcome(unisono_mem_deregister(handle_, memory));
    }
    UNISONO_THROWING(deregister_memory)

    /* From any thread: pending and later calls fail with UNISONO_ABORTED on every rank. */
    result<void> try_abort() { return outcome(unisono_comm_abort(handle_)); }
    UNISONO_THROWING(abort)

    template <class T>
    result<memory<T>> try_allocate(std::size_t count)
    {
        void *data = nullptr;
        if (count > SIZE_MAX / sizeof(T))
            return failure(UNISONO_COUNT_OVERFLOW, "the size in bytes does not fit a size_t");
        int status = unisono_mem_alloc(handle_, count * sizeof(T), &data);
        if (status != UNISONO_OK)
            return failure::last(status, handle_);
        return memory<T>(static_cast<T *>(data), count, handle_);
    }

    /* `factor` multiplies inputs of element type T; T is float where the elements are narrower. */
    template <class T, class Scalar>
    result<pre_mul_sum> try_make_pre_mul_sum(Scalar factor)
    {
        constexpr bool narrow = std::is_same_v<T, f16> || std::is_same_v<T, bf16> ||
                                std::is_same_v<T, f8e4m3> || std::is_same_v<T, f8e5m2>;
        using stored = std::conditional_t<narrow, float, T>;
        const auto scalar = static_cast<stored>(factor);
        int value = 0;
        int status = unisono_op_create_pre_mul_sum(handle_, dtype_of<T>, &scalar, &value);
        if (status != UNISONO_OK)
            return failure::last(status, handle_);
        return pre_mul_sum(value, handle_);
    }

#ifndef UNISONO_NO_EXCEPTIONS
    template <class T>
    memory<T> allocate(std::size_t count)
    {
        return try_allocate<T>(count).value();
    }
    template <class T, class Scalar>
    pre_mul_sum make_pre_mul_sum(Scalar factor)
    {
        return try_make_pre_mul_sum<T>(factor).value();
    }
#endif

private:
    /* ---- the collectives; `How` says whether to block. See the end of the class for the names
     * under which they are public. ---- */

    struct blocking {
        using type = result<void>;
        template <class Call, class Post, class... Arguments>
        type operator()(communicator &comm, Call call, Post, Arguments... arguments) const
        {
            return comm.outcome(call(arguments..., comm.handle_));
        }
    };

    struct posting {
        using type = result<request>;
        template <class Call, class Post, class... Arguments>
        type operator()(communicator &comm, Call, Post post, Arguments... arguments) const
        {
            unisono_request_t *handle = nullptr;
            int status = post(arguments..., comm.handle_, &handle);
            if (status != UNISONO_OK)
                return failure::last(status, comm.handle_);
            return request(handle, comm.handle_);
        }
    };

    /* all_reduce(send, recv, op): recv = the reduction of all ranks' send */
    template <class How, class Send, class Recv>
    typename How::type do_all_reduce(How how, const Send &send, Recv &&recv, reduction by)
    {
        auto [in, out] = pair(send, recv);
        if (out.size() != in.size())
            return detail::wrong_size("recv", out.size(), in.size());
        return how(*this, unisono_all_reduce, unisono_iall_reduce, in.data(), out.data(),
                   in.size(), dtype(in), by.value());
    }

    /* all_reduce(buffer, op) */
    template <class How, class Buffer>
    typename How::type do_all_reduce(How how, Buffer &&buffer, reduction by)
    {
        return do_all_reduce(how, buffer, buffer, by);
    }

    /* reduce(send, recv, op, root): recv at the root = the reduction of all ranks' send */
    template <class How, class Send, class Recv>
    typename How::type do_reduce(How how, const Send &send, Recv &&recv, reduction by, int root)
    {
        auto [in, out] = pair(send, recv);
        if (rank_ == root && out.size() != in.size())
            return detail::wrong_size("recv", out.size(), in.size());
        return how(*this, unisono_reduce, unisono_ireduce, in.data(), out.data(), in.size(),
                   dtype(in), by.value(), root);
    }

    /* reduce(buffer, op, root) */
    template <class How, class Buffer>
    typename How::type do_reduce(How how, Buffer &&buffer, reduction by, int root)
    {
        return do_reduce(how, buffer, buffer, by, root);
    }

    /* broadcast(buffer, root): every rank's buffer = that of the root */
    template <class How, class Buffer>
    typename How::type do_broadcast(How how, Buffer &&buffer, int root)
    {
        auto all = detail::writable(buffer);
        return how(*this, unisono_broadcast, unisono_ibroadcast, all.data(), all.data(),
                   all.size(), dtype(all), root);
    }

    /* all_gather(send, recv): recv = all ranks' send, one after the other */
    template <class How, class Send, class Recv>
    typename How::type do_all_gather(How how, const Send &send, Recv &&recv)
    {
        auto [in, out] = pair(send, recv);
        if (out.size() != in.size() * world())
            return detail::wrong_size("recv", out.size(), in.size() * world());
        return how(*this, unisono_all_gather, unisono_iall_gather, in.data(), out.data(),
                   in.size(), dtype(in));
    }

    /* all_gather(buffer): of `world` blocks this rank has filled its own */
    template <class How, class Buffer>
    typename How::type do_all_gather(How how, Buffer &&buffer)
    {
        auto all = detail::writable(buffer);
        return do_all_gather(how, own_block(all), all);
    }

    /* reduce_scatter(send, recv, op): recv = this rank's block of the reduction of all send */
    template <class How, class Send, class Recv>
    typename How::type do_reduce_scatter(How how, const Send &send, Recv &&recv, reduction by)
    {
        auto [in, out] = pair(send, recv);
        if (in.size() != out.size() * world())
            return detail::wrong_size("send", in.size(), out.size() * world());
        return how(*this, unisono_reduce_scatter, unisono_ireduce_scatter, in.data(), out.data(),
                   out.size(), dtype(in), by.value());
    }

    /* reduce_scatter(buffer, op): this rank's block of it has the result, the rest is undefined */
    template <class How, class Buffer>
    typename How::type do_reduce_scatter(How how, Buffer &&buffer, reduction by)
    {
        auto all = detail::writable(buffer);
        return do_reduce_scatter(how, all, own_block(all), by);
    }

    /* gather(send, recv, root): recv at the root = all ranks' send, one after the other */
    template <class How, class Send, class Recv>
    typename How::type do_gather(How how, const Send &send, Recv &&recv, int root)
    {
        auto [in, out] = pair(send, recv);
        if (rank_ == root && out.size() != in.size() * world())
            return detail::wrong_size("recv", out.size(), in.size() * world());
        return how(*this, unisono_gather, unisono_igather, in.data(), out.data(), in.size(),
                   dtype(in), root);
    }

    /* scatter(send, recv, root): recv = this rank's block of the root's send */
    template <class How, class Send, class Recv>
    typename How::type do_scatter(How how, const Send &send, Recv &&recv, int root)
    {
        auto [in, out] = pair(send, recv);
        if (rank_ == root && in.size() != out.size() * world())
            return detail::wrong_size("send", in.size(), out.size() * world());
        return how(*this, unisono_scatter, unisono_iscatter, in.data(), out.data(), out.size(),
                   dtype(in), root);
    }

    /* all_to_all(send, recv): block r of recv = this rank's block of rank r's send */
    template <class How, class Send, class Recv>
    typename How::type do_all_to_all(How how, const Send &send, Recv &&recv)
    {
        auto [in, out] = pair(send, recv);
        if (out.size() != in.size())
            return detail::wrong_size("recv", out.size(), in.size());
        if (in.size() % world() != 0)
            return uneven("send", in.size());
        return how(*this, unisono_all_to_all, unisono_iall_to_all, in.data(), out.data(),
                   in.size() / world(), dtype(in));
    }

    /* all_to_all(buffer) */
    template <class How, class Buffer>
    typename How::type do_all_to_all(How how, Buffer &&buffer)
    {
        return do_all_to_all(how, buffer, buffer);
    }

    /* all_gather_v(send, recv, counts, displacements = {}): rank r sends counts[r] elements, which
     * lie from displacements[r] on in recv, or one after the other */
    template <class How, class Send, class Recv>
    typename How::type do_all_gather_v(How how, const Send &send, Recv &&recv, counts sizes,
                                       counts displacements = {})
    {
        auto [in, out] = pair(send, recv);
        if (auto wrong = misfit("recv", out.size(), sizes, displacements))
            return *std::move(wrong);
        if (in.size() != sizes[static_cast<std::size_t>(rank_)])
            return detail::wrong_size("send", in.size(), sizes[static_cast<std::size_t>(rank_)]);
        return how(*this, unisono_all_gather_v, unisono_iall_gather_v, in.data(), out.data(),
                   sizes.data(), displacements.data(), dtype(in));
    }

    /* reduce_scatter_v(send, recv, counts, op): rank r gets the next counts[r] elements */
    template <class How, class Send, class Recv>
    typename How::type do_reduce_scatter_v(How how, const Send &send, Recv &&recv, counts sizes,
                                           reduction by)
    {
        auto [in, out] = pair(send, recv);
        if (auto wrong = misfit("send", in.size(), sizes, {}))
            return *std::move(wrong);
        if (out.size() != sizes[static_cast<std::size_t>(rank_)])
            return detail::wrong_size("recv", out.size(), sizes[static_cast<std::size_t>(rank_)]);
        return how(*this, unisono_reduce_scatter_v, unisono_ireduce_scatter_v, in.data(),
                   out.data(), sizes.data(), dtype(in), by.value());
    }

    /* gather_v(send, recv, counts, displacements, root) */
    template <class How, class Send, class Recv>
    typename How::type do_gather_v(How how, const Send &send, Recv &&recv, counts sizes,
                                   counts displacements, int root)
    {
        auto [in, out] = pair(send, recv);
        if (rank_ == root)
            if (auto wrong = misfit("recv", out.size(), sizes, displacements))
                return *std::move(wrong);
        return how(*this, unisono_gather_v, unisono_igather_v, in.data(),
                   std::uint64_t{in.size()}, out.data(), sizes.data(), displacements.data(),
                   dtype(in), root);
    }

    /* scatter_v(send, counts, displacements, recv, root) */
    template <class How, class Send, class Recv>
    typename How::type do_scatter_v(How how, const Send &send, counts sizes, counts displacements,
                                    Recv &&recv, int root)
    {
        auto [in, out] = pair(send, recv);
        if (rank_ == root)
            if (auto wrong = misfit("send", in.size(), sizes, displacements))
                return *std::move(wrong);
        return how(*this, unisono_scatter_v, unisono_iscatter_v, in.data(), sizes.data(),
                   displacements.data(), out.data(), std::uint64_t{out.size()}, dtype(in), root);
    }

    /* all_to_all_v(send, send counts, send displacements, recv, recv counts, recv displacements) */
    template <class How, class Send, class Recv>
    typename How::type do_all_to_all_v(How how, const Send &send, counts send_sizes,
                                       counts send_displacements, Recv &&recv, counts recv_sizes,
                                       counts recv_displacements)
    {
        auto [in, out] = pair(send, recv);
        if (auto wrong = misfit("send", in.size(), send_sizes, send_displacements))
            return *std::move(wrong);
        if (auto wrong = misfit("recv", out.size(), recv_sizes, recv_displacements))
            return *std::move(wrong);
        return how(*this, unisono_all_to_all_v, unisono_iall_to_all_v, in.data(),
                   send_sizes.data(), send_displacements.data(), out.data(), recv_sizes.data(),
                   recv_displacements.data(), dtype(in));
    }

    /* barrier(): returns once every rank has called it */
    template <class How>
    typename How::type do_barrier(How how)
    {
        return how(*this, unisono_barrier, unisono_ibarrier);
    }

    /* send(buffer, peer) */
    template <class How, class Send>
    typename How::type do_send(How how, const Send &send, int peer)
    {
        auto in = detail::readable(send);
        return how(*this, unisono_send, unisono_isend, in.data(), in.size(), dtype(in), peer);
    }

    /* recv(buffer, peer) */
    template <class How, class Recv>
    typename How::type do_recv(How how, Recv &&recv, int peer)
    {
        auto out = detail::writable(recv);
        return how(*this, unisono_recv, unisono_irecv, out.data(), out.size(), dtype(out), peer);
    }

    /* send_recv(send, to, recv, from): sends to one rank while receiving from another */
    template <class How, class Send, class Recv>
    typename How::type do_send_recv(How how, const Send &send, int to, Recv &&recv, int from)
    {
        auto [in, out] = pair(send, recv);
        return how(*this, unisono_send_recv, unisono_isend_recv, in.data(), in.size(), to,
                   out.data(), out.size(), from, dtype(in));
    }

/* The four public forms of one collective. */
#define UNISONO_COLLECTIVE(name)                                                                   \
    template <class... Arguments>                                                                  \
    result<void> try_##name(Arguments &&...arguments)                                              \
    {                                                                                              \
        return do_##name(blocking{}, std::forward<Arguments>(arguments)...);                       \
    }                                                                                              \
    template <class... Arguments>                                                                  \
    result<request> try_i##name(Arguments &&...arguments)                                          \
    {                                                                                              \
        return do_##name(posting{}, std::forward<Arguments>(arguments)...);                        \
    }                                                                                              \
    UNISONO_THROWING(name)                                                                         \
    UNISONO_THROWING(i##name)

public:
    UNISONO_COLLECTIVE(all_reduce)
    UNISONO_COLLECTIVE(reduce)
    UNISONO_COLLECTIVE(broadcast)
    UNISONO_COLLECTIVE(all_gather)
    UNISONO_COLLECTIVE(reduce_scatter)
    UNISONO_COLLECTIVE(gather)
    UNISONO_COLLECTIVE(scatter)
    UNISONO_COLLECTIVE(all_to_all)
    UNISONO_COLLECTIVE(all_gather_v)
    UNISONO_COLLECTIVE(reduce_scatter_v)
    UNISONO_COLLECTIVE(gather_v)
    UNISONO_COLLECTIVE(scatter_v)
    UNISONO_COLLECTIVE(all_to_all_v)
    UNISONO_COLLECTIVE(barrier)
    UNISONO_COLLECTIVE(send)
    UNISONO_COLLECTIVE(recv)
    UNISONO_COLLECTIVE(send_recv)
#undef UNISONO_COLLECTIVE

private:
    std::size_t world() const noexcept { return static_cast<std::size_t>(world_); }

    static result<communicator> adopt(int status, unisono_comm_t *handle)
    {
        if (status != UNISONO_OK)
            return failure::last(status, nullptr);
        return communicator(handle);
    }

    result<void> outcome(int status) const
    {
        return status == UNISONO_OK ? result<void>() : failure::last(status, handle_);
    }

    template <class Send, class Recv>
    static auto pair(const Send &send, Recv &&recv)
    {
        static_assert(detail::same_element<const Send, Recv>,
                      "the buffers have different element types");
        return std::make_pair(detail::readable(send), detail::writable(recv));
    }

    template <class T>
    static constexpr int dtype(span<T>) noexcept
    {
        return dtype_of<T>;
    }

    template <class T>
    span<T> own_block(span<T> all) const
    {
        std::size_t block = world() ? all.size() / world() : 0;
        return all.subspan(block * static_cast<std::size_t>(rank_), block);
    }

    failure uneven(const char *what, std::size_t size) const
    {
        return failure(UNISONO_INVALID_ARGUMENT, std::string(what) + " has " +
                                                     std::to_string(size) +
                                                     " elements, which do not divide by the " +
                                                     std::to_string(world_) + " ranks");
    }

    /* Why a buffer of `size` elements does not hold the ranks' blocks, if it does not. */
    std::optional<failure> misfit(const char *what, std::size_t size, counts sizes,
                                  counts displacements) const
    {
        if (sizes.size() != world())
            return detail::wrong_size("counts", sizes.size(), world());
        if (!displacements.empty() && displacements.size() != world())
            return detail::wrong_size("displacements", displacements.size(), world());
        std::uint64_t next = 0;
        for (std::size_t r = 0; r < world(); r++) {
            std::uint64_t begin = displacements.empty() ? next : displacements[r];
            if (begin > size || sizes[r] > size - begin)
                return failure(UNISONO_INVALID_ARGUMENT,
                               std::string(what) + " has " + std::to_string(size) +
                                   " elements, the block of rank " + std::to_string(r) + " has " +
                                   std::to_string(sizes[r]) + " from " + std::to_string(begin));
            next = begin + sizes[r];
        }
        return std::nullopt;
    }

    unisono_comm_t *handle_ = nullptr;
    int rank_ = 0;
    int world_ = 0;
};

/* ---- groups ---- */

/* Calls made on the communicator while a group is open are fused: posted together, completed
 * together, by end(). The destructor ends a group left open, as when an exception passes. */
class group {
public:
    static result<group> try_start(communicator &comm)
    {
        int status = unisono_group_start(comm.native());
        if (status != UNISONO_OK)
            return failure::last(status, comm.native());
        return group(comm.native());
    }
    UNISONO_THROWING_STATIC(start)

    group(group &&other) noexcept : comm_(std::exchange(other.comm_, nullptr)) {}
    group &operator=(group &&other) noexcept
    {
        std::swap(comm_, other.comm_);
        return *this;
    }
    ~group()
    {
        if (comm_)
            (void)unisono_group_end(comm_);
    }

    result<void> try_end()
    {
        unisono_comm_t *comm = std::exchange(comm_, nullptr);
        int status = comm ? unisono_group_end(comm) : UNISONO_OK;
        return status == UNISONO_OK ? result<void>() : failure::last(status, comm);
    }
    UNISONO_THROWING(end)

    /* Without blocking: the request completes when all calls of the group have. */
    result<request> try_iend()
    {
        unisono_comm_t *comm = std::exchange(comm_, nullptr);
        unisono_request_t *handle = nullptr;
        int status = comm ? unisono_igroup_end(comm, &handle) : UNISONO_OK;
        if (status != UNISONO_OK)
            return failure::last(status, comm);
        return request(handle, comm);
    }
    UNISONO_THROWING(iend)

private:
    explicit group(unisono_comm_t *comm) noexcept : comm_(comm) {}

    unisono_comm_t *comm_;
};

} // namespace unisono

#undef UNISONO_THROWING
#undef UNISONO_THROWING_STATIC

#endif
