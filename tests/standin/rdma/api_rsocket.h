// The calls of librdmacm for sockets, on Unix sockets that keep packets whole.
//
// What is sent goes to the peer's process, where one thread takes it: writes into mapped memory
// without the program's doing, and the stream into a second socket, from which the program reads.
// So a socket of ours is polled at two places: the end of the stream, whose number it has, and the
// way to the peer. The settings that let devices fail or be slow mean nothing here.
#pragma once

namespace {

constexpr size_t PART = 16 << 10;

struct Part {
    enum { HELLO, STREAM, WRITE, MAP, UNMAP, END } kind;
    sockaddr_in from;
    int64_t offset, bytes;
};

struct Mapping {
    int64_t offset, bytes;
    char *at;
};

struct Rsocket {
    int fd = -1, wire = -1, feed = -1;
    enum { NEW, BOUND, LISTENS, CONNECTED } state = NEW;
    bool blocks = true;
    int error = 0;
    sockaddr_in own{}, peer{};
    std::map<std::pair<int, int>, int> options;
    std::atomic<bool> may_send{true};
    unsigned writes = 0;

    /// Both sides' mappings, and what the program has not read.
    std::mutex lock;
    std::vector<Mapping> mapped, targets;
    std::string unread;
    bool has_ended = false;

    Rsocket() = default;
    Rsocket(const Rsocket &) = delete;
    ~Rsocket() {
        for (int each : {fd, wire, feed})
            if (each >= 0) close(each);
    }
    int option(int level, int name) {
        auto found = options.find({level, name});
        return found == options.end() ? 0 : found->second;
    }
};

struct Rsockets {
    std::mutex lock;
    std::map<int, std::shared_ptr<Rsocket>> open;
    int epoll = -1;
};

Rsockets &rsockets() {
    static Rsockets *made = new Rsockets;
    return *made;
}

std::shared_ptr<Rsocket> rsocket_of(int fd) {
    std::lock_guard<std::mutex> lock(rsockets().lock);
    auto found = rsockets().open.find(fd);
    if (found == rsockets().open.end()) return none<Rsocket>(EBADF), nullptr;
    return found->second;
}

// What comes in ----------------------------------------------------------------------------------

void watch_rsocket(Rsocket &from, int operation, int fd, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = from.fd;
    epoll_ctl(rsockets().epoll, operation, fd, &event);
}

/// The peer says nothing more.
void end_stream(Rsocket &from) {
    from.has_ended = true;
    if (from.unread.empty()) shutdown(from.feed, SHUT_WR);
}

/// Hands the program what there is; false if it must read first.
bool feed(Rsocket &to) {
    while (!to.unread.empty()) {
        ssize_t sent = send(to.feed, to.unread.data(), to.unread.size(),
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return false;
        if (sent < 0) to.unread.clear();
        else to.unread.erase(0, size_t(sent));
    }
    if (to.has_ended) shutdown(to.feed, SHUT_WR);
    return true;
}

/// The program's connection is of no use any more: what a write of the peer's does that it may not.
void break_rsocket(Rsocket &broken) {
    broken.may_send = false;
    end_stream(broken);
    shutdown(broken.wire, SHUT_RDWR);
}

void handle_part(Rsocket &to, const Part &part, const char *data) {
    switch (part.kind) {
    case Part::STREAM: to.unread.append(data, size_t(part.bytes)); return;
    case Part::MAP:
        if (int(to.targets.size()) < to.option(SOL_RDMA, RDMA_IOMAPSIZE))
            to.targets.push_back({part.offset, part.bytes, nullptr});
        return;
    case Part::UNMAP: {
        auto is_it = [&](const Mapping &each) { return each.offset == part.offset; };
        auto &targets = to.targets;
        targets.erase(std::remove_if(targets.begin(), targets.end(), is_it), targets.end());
        return;
    }
    case Part::WRITE:
        for (const Mapping &each : to.mapped) {
            int64_t skip = part.offset - each.offset;
            if (skip < 0 || part.bytes > each.bytes || skip > each.bytes - part.bytes) continue;
            return place(each.at + skip, data, size_t(part.bytes));
        }
        return break_rsocket(to);
    case Part::END: return end_stream(to);
    default: return;
    }
}

/// Takes what has come, as long as the program takes it in turn.
void receive(Rsocket &to) {
    std::lock_guard<std::mutex> lock(to.lock);
    static thread_local char room[sizeof(Part) + PART];
    while (feed(to)) {
        ssize_t got = recv(to.wire, room, sizeof room, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN)
            return watch_rsocket(to, EPOLL_CTL_MOD, to.wire, EPOLLIN | EPOLLONESHOT);
        if (got <= 0) {
            to.may_send = false;
            // Before what was sent last, the kernel says that it was sent last.
            if (got < 0 && errno == ECONNRESET) continue;
            return end_stream(to);
        }
        Part part;
        memcpy(&part, room, sizeof part);
        handle_part(to, part, room + sizeof part);
    }
    watch_rsocket(to, EPOLL_CTL_MOD, to.feed, EPOLLOUT | EPOLLONESHOT);
}

/// Under the lock of all.
void start_rsockets() {
    Rsockets &all = rsockets();
    if (all.epoll >= 0) return;
    all.epoll = epoll_create1(EPOLL_CLOEXEC);
    sigset_t signals, before;
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    std::thread([&all] {
        for (epoll_event event;;)
            if (epoll_wait(all.epoll, &event, 1, -1) == 1)
                if (auto found = rsocket_of(event.data.fd)) receive(*found);
    }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// What goes out ----------------------------------------------------------------------------------

/// Sends one part whole, or fails.
bool put_part(Rsocket &to, const Part &part, const void *data, size_t bytes, bool blocks) {
    iovec pieces[2] = {{const_cast<Part *>(&part), sizeof part},
                       {const_cast<void *>(data), bytes}};
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = bytes ? 2 : 1;
    for (;;) {
        if (!to.may_send) return fail(EPIPE) == 0;
        if (sendmsg(to.wire, &message, MSG_NOSIGNAL | (blocks ? 0 : MSG_DONTWAIT)) >= 0)
            return true;
        if (errno == ECONNRESET) errno = EPIPE;
        if (errno != EINTR) return false;
    }
}

/// Sends parts of one kind; how much has gone, or -1.
ssize_t put_parts(Rsocket &to, Part part, const char *data, size_t bytes, bool blocks) {
    size_t sent = 0;
    while (sent < bytes) {
        size_t next = std::min(PART, bytes - sent);
        part.bytes = int64_t(next);
        if (!put_part(to, part, data + sent, next, blocks)) return sent ? ssize_t(sent) : -1;
        part.offset += part.bytes;
        sent += next;
    }
    return ssize_t(sent);
}

/// The socket has a connection from now on.
int connected(std::shared_ptr<Rsocket> made, int wire) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) return -1;
    if (made->fd < 0) made->fd = ends[0];
    else {
        dup3(ends[0], made->fd, O_CLOEXEC);
        close(ends[0]);
    }
    if (!made->blocks) fcntl(made->fd, F_SETFL, O_NONBLOCK);
    made->wire = wire;
    made->feed = ends[1];
    made->state = Rsocket::CONNECTED;
    std::lock_guard<std::mutex> lock(rsockets().lock);
    rsockets().open[made->fd] = made;
    start_rsockets();
    watch_rsocket(*made, EPOLL_CTL_ADD, made->feed, 0);
    watch_rsocket(*made, EPOLL_CTL_ADD, made->wire, EPOLLIN | EPOLLONESHOT);
    return made->fd;
}

bool is_device(const sockaddr_in &address) {
    return address.sin_addr.s_addr == INADDR_ANY || card_at(address.sin_addr.s_addr);
}

void give_address(const sockaddr_in &from, sockaddr *to, socklen_t *room) {
    if (!to || !room) return;
    memcpy(to, &from, std::min<size_t>(*room, sizeof from));
    *room = sizeof from;
}

/// Makes `fd` a socket that listens for all peers, under the name of the address.
int open_listener(Rsocket &made, const sockaddr_in &at) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un name;
    socklen_t length = name_of(name, "rsocket", at.sin_addr.s_addr, at.sin_port);
    if (bind(fd, reinterpret_cast<sockaddr *>(&name), length)) {
        int code = errno;
        close(fd);
        return code;
    }
    dup3(fd, made.fd, O_CLOEXEC);
    close(fd);
    if (!made.blocks) fcntl(made.fd, F_SETFL, O_NONBLOCK);
    return 0;
}

/// A wire to who listens at the address, or at all addresses.
int open_wire(const sockaddr_in &to, const sockaddr_in &from) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    for (in_addr_t address : {to.sin_addr.s_addr, in_addr_t(INADDR_ANY)}) {
        sockaddr_un name;
        socklen_t length = name_of(name, "rsocket", address, to.sin_port);
        if (connect(fd, reinterpret_cast<sockaddr *>(&name), length)) continue;
        Part hello{};
        hello.kind = Part::HELLO;
        hello.from = from;
        if (send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello) return fd;
    }
    int code = errno;
    close(fd);
    return fail(code);
}

} // namespace

extern "C" {

int rsocket(int domain, int type, int) {
    if (world().cards.empty()) return fail(ENODEV);
    if (domain != AF_INET || type != SOCK_STREAM) return fail(ENOTSUP);
    auto made = std::make_shared<Rsocket>();
    made->fd = eventfd(0, EFD_CLOEXEC);
    made->own.sin_family = AF_INET;
    std::lock_guard<std::mutex> lock(rsockets().lock);
    rsockets().open[made->fd] = made;
    return made->fd;
}

int rbind(int fd, const sockaddr *address, socklen_t bytes) {
    auto bound = rsocket_of(fd);
    if (!bound) return -1;
    sockaddr_in at;
    if (bytes < sizeof at || address->sa_family != AF_INET) return fail(EAFNOSUPPORT);
    memcpy(&at, address, sizeof at);
    if (bound->state != Rsocket::NEW) return fail(EINVAL);
    if (!is_device(at)) return fail(is_own(at) ? ENODEV : EADDRNOTAVAIL);
    int code = EADDRINUSE;
    for (int turn = 0; code == EADDRINUSE && turn < 1000; turn++) {
        Hold hold;
        bound->own = at;
        if (!at.sin_port) bound->own.sin_port = some_port();
        code = open_listener(*bound, bound->own);
        if (at.sin_port) break;
    }
    if (code) return fail(code);
    bound->state = Rsocket::BOUND;
    return 0;
}

int rlisten(int fd, int backlog) {
    auto listening = rsocket_of(fd);
    if (!listening) return -1;
    if (listening->state != Rsocket::BOUND) return fail(EINVAL);
    if (listen(fd, backlog)) return -1;
    listening->state = Rsocket::LISTENS;
    return 0;
}

int raccept(int fd, sockaddr *address, socklen_t *bytes) {
    auto listening = rsocket_of(fd);
    if (!listening) return -1;
    if (listening->state != Rsocket::LISTENS) return fail(EINVAL);
    int wire = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
    if (wire < 0) return -1;
    auto made = std::make_shared<Rsocket>();
    Part hello;
    if (recv(wire, &hello, sizeof hello, 0) != sizeof hello) {
        close(wire);
        return fail(ECONNABORTED);
    }
    made->own = listening->own;
    made->peer = hello.from;
    made->options = listening->options;
    give_address(made->peer, address, bytes);
    return connected(made, wire);
}

int rconnect(int fd, const sockaddr *address, socklen_t bytes) {
    auto made = rsocket_of(fd);
    if (!made) return -1;
    sockaddr_in to;
    if (bytes < sizeof to || address->sa_family != AF_INET) return fail(EAFNOSUPPORT);
    memcpy(&to, address, sizeof to);
    if (made->state == Rsocket::CONNECTED) return fail(made->error ? made->error : EISCONN);
    if (made->state == Rsocket::LISTENS) return fail(EINVAL);
    if (ntohl(to.sin_addr.s_addr) >> 24 != 127) return fail(ENODEV);
    made->peer = to;
    if (made->state == Rsocket::NEW) {
        Hold hold;
        made->own = to;
        made->own.sin_port = some_port();
    }
    int wire = open_wire(to, made->own);
    int code = wire < 0 ? errno : 0;
    // Who does not wait hears of it when polling.
    if (code && made->blocks) return fail(code);
    if (code) wire = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    made->error = code;
    made->may_send = !code;
    if (connected(made, wire) < 0) return -1;
    return made->blocks ? 0 : fail(EINPROGRESS);
}

int rshutdown(int fd, int how) {
    auto ended = rsocket_of(fd);
    if (!ended) return -1;
    if (ended->state != Rsocket::CONNECTED) return fail(ENOTCONN);
    Part end{};
    end.kind = Part::END;
    if (how != SHUT_RD && ended->may_send) {
        put_part(*ended, end, nullptr, 0, true);
        ended->may_send = false;
    }
    if (how != SHUT_WR) shutdown(fd, SHUT_RD);
    return 0;
}

int rclose(int fd) {
    auto closed = rsocket_of(fd);
    if (!closed) return -1;
    // What has been sent stays there for the peer, and ends there.
    std::lock_guard<std::mutex> lock(rsockets().lock);
    rsockets().open.erase(fd);
    if (closed->state == Rsocket::CONNECTED) {
        epoll_ctl(rsockets().epoll, EPOLL_CTL_DEL, closed->wire, nullptr);
        epoll_ctl(rsockets().epoll, EPOLL_CTL_DEL, closed->feed, nullptr);
    }
    return 0;
}

ssize_t rrecv(int fd, void *to, size_t bytes, int flags) {
    auto from = rsocket_of(fd);
    if (!from) return -1;
    if (from->state != Rsocket::CONNECTED) return fail(ENOTCONN);
    return recv(fd, to, bytes, flags);
}

ssize_t rsend(int fd, const void *from, size_t bytes, int flags) {
    auto to = rsocket_of(fd);
    if (!to) return -1;
    if (to->state != Rsocket::CONNECTED) return fail(ENOTCONN);
    Part part{};
    part.kind = Part::STREAM;
    bool blocks = to->blocks && !(flags & MSG_DONTWAIT);
    return put_parts(*to, part, static_cast<const char *>(from), bytes, blocks);
}

int rpoll(pollfd *fds, nfds_t count, int timeout_ms) {
    // Each at its own number, and then once more where its wire is.
    std::vector<pollfd> all(2 * count);
    for (nfds_t at = 0; at < count; at++) {
        all[at] = fds[at];
        all[count + at] = {-1, POLLOUT, 0};
        auto found = fds[at].fd < 0 ? nullptr : rsocket_of(fds[at].fd);
        if (!found || found->state != Rsocket::CONNECTED) continue;
        all[at].events = short(fds[at].events & ~POLLOUT);
        if (fds[at].events & POLLOUT) all[count + at].fd = found->wire;
    }
    int ready = poll(all.data(), all.size(), timeout_ms);
    if (ready < 0) return ready;
    ready = 0;
    for (nfds_t at = 0; at < count; at++) {
        fds[at].revents = short(all[at].revents | all[count + at].revents);
        ready += fds[at].revents != 0;
    }
    return ready;
}

int rgetpeername(int fd, sockaddr *address, socklen_t *bytes) {
    auto asked = rsocket_of(fd);
    if (!asked) return -1;
    if (asked->state != Rsocket::CONNECTED) return fail(ENOTCONN);
    give_address(asked->peer, address, bytes);
    return 0;
}

int rgetsockname(int fd, sockaddr *address, socklen_t *bytes) {
    auto asked = rsocket_of(fd);
    if (!asked) return -1;
    give_address(asked->own, address, bytes);
    return 0;
}

int rsetsockopt(int fd, int level, int option, const void *value, socklen_t bytes) {
    auto changed = rsocket_of(fd);
    if (!changed) return -1;
    if (level == SOL_RDMA && changed->state == Rsocket::CONNECTED) return fail(EINVAL);
    if (level == SOL_RDMA && option > RDMA_ROUTE) return fail(ENOTSUP);
    int number = 0;
    memcpy(&number, value, std::min<size_t>(bytes, sizeof number));
    changed->options[{level, option}] = number;
    return 0;
}

int rgetsockopt(int fd, int level, int option, void *value, socklen_t *bytes) {
    auto asked = rsocket_of(fd);
    if (!asked) return -1;
    int number = asked->option(level, option);
    if (level == SOL_SOCKET && option == SO_ERROR) number = std::exchange(asked->error, 0);
    memcpy(value, &number, std::min<size_t>(*bytes, sizeof number));
    *bytes = sizeof number;
    return 0;
}

int rfcntl(int fd, int command, ...) {
    auto changed = rsocket_of(fd);
    if (!changed) return -1;
    if (command == F_GETFL) return changed->blocks ? O_RDWR : O_RDWR | O_NONBLOCK;
    if (command != F_SETFL) return fail(ENOTSUP);
    va_list values;
    va_start(values, command);
    int flags = va_arg(values, int);
    va_end(values);
    changed->blocks = !(flags & O_NONBLOCK);
    return fcntl(fd, F_SETFL, flags & O_NONBLOCK);
}

off_t riomap(int fd, void *at, size_t bytes, int protection, int flags, off_t offset) {
    auto of = rsocket_of(fd);
    if (!of) return -1;
    if (flags || !bytes || !(protection & PROT_WRITE)) return fail(EINVAL);
    if (of->state != Rsocket::CONNECTED) return fail(ENOTCONN);
    if (!is_mapped(at, bytes, true)) return fail(EFAULT);
    Part part{};
    part.kind = Part::MAP;
    part.offset = offset == -1 ? off_t(uintptr_t(at)) : offset;
    part.bytes = int64_t(bytes);
    {
        // Both sides are taken to have as much room for maps.
        std::lock_guard<std::mutex> lock(of->lock);
        if (int(of->mapped.size()) >= of->option(SOL_RDMA, RDMA_IOMAPSIZE)) return fail(ENOMEM);
        of->mapped.push_back({part.offset, part.bytes, static_cast<char *>(at)});
    }
    return put_part(*of, part, nullptr, 0, true) ? part.offset : -1;
}

int riounmap(int fd, void *at, size_t bytes) {
    auto of = rsocket_of(fd);
    if (!of) return -1;
    Part part{};
    part.kind = Part::UNMAP;
    {
        std::lock_guard<std::mutex> lock(of->lock);
        auto is_it = [&](const Mapping &each) {
            return each.at == at && each.bytes == int64_t(bytes);
        };
        auto found = std::find_if(of->mapped.begin(), of->mapped.end(), is_it);
        if (found == of->mapped.end()) return fail(EINVAL);
        part.offset = found->offset;
        of->mapped.erase(found);
    }
    put_part(*of, part, nullptr, 0, true);
    return 0;
}

size_t riowrite(int fd, const void *from, size_t bytes, off_t offset, int flags) {
    auto to = rsocket_of(fd);
    if (!to) return size_t(-1);
    if (to->state != Rsocket::CONNECTED) return size_t(fail(ENOTCONN));
    {
        std::lock_guard<std::mutex> lock(to->lock);
        auto holds = [&](const Mapping &each) {
            return offset >= each.offset && offset < each.offset + each.bytes;
        };
        // The library says nothing more of it.
        if (std::none_of(to->targets.begin(), to->targets.end(), holds)) return 0;
    }
    Part part{};
    part.kind = Part::WRITE;
    part.offset = offset;
    bool blocks = to->blocks && !(flags & MSG_DONTWAIT);
    static long most = number("STANDIN_RSOCKET_SHORT", 0);
    if (most && !blocks) {
        if ((to->writes++ & 1) != 0) return size_t(fail(EAGAIN));
        bytes = std::min(bytes, size_t(most));
    }
    return size_t(put_parts(*to, part, static_cast<const char *>(from), bytes, blocks));
}

} // extern "C"
