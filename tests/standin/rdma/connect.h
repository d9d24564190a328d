// Connections: sockets by address and port, what both ends say as they begin and end, and the
// events that programs get of it. And what comes in on a wire.
#pragma once

namespace {

// How the kernel's connection manager says why a peer refuses.
constexpr int REJECTED_TIMEOUT = 4, REJECTED_NO_SERVICE = 8, REJECTED_BY_CONSUMER = 28;

void tell(Id &id, rdma_cm_event_type type, int status = 0, const Greeting *greeting = nullptr,
          std::shared_ptr<Wire> wire = nullptr) {
    auto channel = static_cast<EventChannel *>(id.channel);
    Told told{&id, type, status, std::move(wire), greeting != nullptr, {}};
    if (greeting) told.greeting = *greeting;
    channel->events.push_back(std::move(told));
    channel->tokens.give();
}

/// Sockets have names, and no ports that programs' own could take.
socklen_t name_of(sockaddr_un &name, const char *kind, in_addr_t address, in_port_t port) {
    name = {};
    name.sun_family = AF_UNIX;
    int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "standin-%s/%08x/%u", kind,
                          unsigned(ntohl(address)), unsigned(ntohs(port)));
    return socklen_t(offsetof(sockaddr_un, sun_path) + 1 + size_t(length));
}

std::shared_ptr<Wire> make_wire(Card &card, int fd) {
    auto wire = std::make_shared<Wire>();
    wire->number = world().numbers++;
    wire->card = &card;
    wire->fd = fd;
    wire->in.resize(2 * (PACKET + sizeof(Frame)));
    card.wires[wire->number] = wire;
    return wire;
}

/// Nobody needs the wire any more.
void abandon(Wire &wire) {
    auto keep = wire.shared_from_this();
    wire.id = wire.listener = nullptr;
    say_gone(wire);
    if (Qp *qp = wire.qp) {
        qp->wire = nullptr;
        wire.qp = nullptr;
        fail_requests(*qp);
    }
    wire.is_closing = true;
    if (wire.is_connecting) close_wire(wire);
    else flush(wire);
}

// Beginning ---------------------------------------------------------------------------------------

/// Tries to connect; again later, if the peer is busy.
void try_connect(Wire &wire) {
    Id *id = wire.id;
    if (!id || !wire.is_connecting) return;
    const sockaddr_in &to = id->route.addr.dst_sin;
    sockaddr_un name;
    socklen_t length = name_of(name, "rdma", to.sin_addr.s_addr, to.sin_port);
    if (connect(wire.fd, reinterpret_cast<sockaddr *>(&name), length)) {
        if (errno == EAGAIN || errno == EINTR)
            return set_timer(wire, Clock::now() + std::chrono::milliseconds(1));
        wire.has_told = true;
        id->state = Id::ENDED;
        tell(*id, RDMA_CM_EVENT_REJECTED, is_iwarp() ? -ECONNREFUSED : REJECTED_NO_SERVICE);
        return close_wire(wire);
    }
    wire.is_connecting = false;
    watch(wire, EPOLL_CTL_ADD, false);
    put(wire, Kind::CONNECT, &wire.greeting);
    flush(wire);
}

void begin_connection(Id &id, const Greeting &greeting) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    auto wire = make_wire(*id.card, fd);
    wire->is_connecting = true;
    wire->greeting = greeting;
    wire->id = &id;
    wire->qp = static_cast<Qp *>(id.qp);
    wire->qp->wire = wire;
    id.wire = wire;
    id.state = Id::CONNECTING;
    try_connect(*wire);
}

void accept_wires(Listener &listener) {
    for (;;) {
        int fd = accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) return;
        auto wire = make_wire(*listener.card, fd);
        wire->listener = listener.id;
        watch(*wire, EPOLL_CTL_ADD, false);
    }
}

/// What the two ends agree on, and the queue pair's way to RTS.
void join(Wire &wire, const Greeting &own, const Greeting &theirs) {
    Qp &qp = *wire.qp;
    // How often to try again is for the one to say who has no receive.
    wire.rnr_retry = own.rnr_retry & 7;
    wire.depth = std::min(own.initiator_depth, theirs.responder_resources);
    wire.resources = own.responder_resources;
    std::lock_guard<std::mutex> lock(qp.lock);
    if (qp.state == IBV_QPS_ERR) return;
    qp.attr.dest_qp_num = theirs.qp_num;
    qp.attr.rnr_retry = theirs.rnr_retry & 7;
    qp.attr.retry_cnt = own.retry_count & 7;
    qp.attr.max_rd_atomic = uint8_t(wire.depth);
    qp.attr.max_dest_rd_atomic = uint8_t(wire.resources);
    qp.state = IBV_QPS_RTS;
}

// Ending ------------------------------------------------------------------------------------------

void told_disconnected(Wire &wire) {
    tell(*wire.id, RDMA_CM_EVENT_DISCONNECTED);
    if (!is_iwarp()) set_timer(wire, wire.wait_end, std::chrono::milliseconds(20));
}

/// The peer leaves, or has died: what that is depends on how far the connection has come.
void peer_left(Wire &wire) {
    wire.peer_has_left = true;
    if (wire.has_told || !wire.id) return;
    wire.has_told = true;
    Id &id = *wire.id;
    auto before = id.state;
    id.state = Id::ENDED;
    switch (before) {
    case Id::CONNECTING:
    case Id::ACCEPTED: return tell(id, RDMA_CM_EVENT_UNREACHABLE, -ETIMEDOUT);
    case Id::REQUESTED:
        return tell(id, RDMA_CM_EVENT_REJECTED, is_iwarp() ? -ECONNRESET : REJECTED_TIMEOUT);
    default: return told_disconnected(wire);
    }
}

/// The program has disconnected. True if there was something to end.
bool leave(Wire &wire) {
    if (!wire.id) return false;
    Id &id = *wire.id;
    if (wire.has_left || id.state < Id::RESPONDED || id.state == Id::REQUESTED) return false;
    wire.has_left = true;
    bool answers = wire.peer_has_left;
    put(wire, answers ? Kind::LEFT : Kind::LEAVE);
    flush(wire);
    if (wire.fd < 0 && !wire.has_told) peer_left(wire);
    if (!answers) set_timer(wire, wire.leave_end, std::chrono::seconds(5));
    return true;
}

// Coming in ---------------------------------------------------------------------------------------

void handle_connection(Wire &wire, const Frame &frame, const Greeting *greeting) {
    Id *id = wire.id;
    switch (frame.kind) {
    case Kind::CONNECT:
        wire.greeting = *greeting;
        if (!wire.listener) return abandon(wire);
        return tell(*wire.listener, RDMA_CM_EVENT_CONNECT_REQUEST, 0, greeting,
                    wire.shared_from_this());
    case Kind::ACCEPT:
        if (!id || id->state != Id::CONNECTING) return;
        id->state = Id::RESPONDED;
        return tell(*id, RDMA_CM_EVENT_CONNECT_RESPONSE, 0, greeting);
    case Kind::REJECT:
        if (!id || id->state != Id::CONNECTING) return;
        id->state = Id::ENDED;
        wire.has_told = true;
        return tell(*id, RDMA_CM_EVENT_REJECTED, is_iwarp() ? -ECONNREFUSED : REJECTED_BY_CONSUMER,
                    greeting);
    case Kind::READY:
        if (!id || id->state != Id::ACCEPTED) return;
        id->state = Id::CONNECTED;
        return tell(*id, RDMA_CM_EVENT_ESTABLISHED);
    case Kind::LEAVE:
        lose_peer(wire);
        return peer_left(wire);
    case Kind::LEFT: return peer_left(wire);
    default: return;
    }
}

void handle(Wire &wire, const Frame &frame, const char *data) {
    Qp *qp = wire.qp;
    Greeting greeting{};
    if (frame.kind <= Kind::LEFT) {
        if (frame.bytes == sizeof greeting) memcpy(&greeting, data, sizeof greeting);
        return handle_connection(wire, frame, &greeting);
    }
    if (frame.kind == Kind::DEAD) wire.peer_is_dead = true;
    if (frame.kind == Kind::DEAD || frame.kind == Kind::GONE) return lose_peer(wire);
    if (!qp || qp->state == IBV_QPS_ERR) return;
    switch (frame.kind) {
    case Kind::REQUEST: return handle_request(wire, frame, data);
    case Kind::DATA: return handle_data(wire, frame, data);
    case Kind::ACK: return complete_until(*qp, frame.message);
    case Kind::NAK:
        complete_until(*qp, frame.message);
        if (qp->state != IBV_QPS_ERR) end_qp(*qp, ibv_wc_status(frame.status));
        return;
    case Kind::RNR: return handle_rnr(wire, frame);
    default: qp->is_paused = false;
    }
}

/// Handles what has come in whole. Stops where the queue pair is not yet ready to receive.
void parse(Wire &wire) {
    while (wire.in_end - wire.in_at >= sizeof(Frame)) {
        Frame frame;
        memcpy(&frame, wire.in.data() + wire.in_at, sizeof frame);
        if (wire.in_end - wire.in_at < sizeof frame + frame.bytes) break;
        if (frame.kind >= Kind::REQUEST && wire.qp && wire.qp->state == IBV_QPS_INIT) {
            if (!wire.is_held) epoll_ctl(wire.card->epoll, EPOLL_CTL_DEL, wire.fd, nullptr);
            wire.is_held = true;
            return;
        }
        const char *data = wire.in.data() + wire.in_at + sizeof frame;
        wire.in_at += sizeof frame + frame.bytes;
        handle(wire, frame, data);
    }
    memmove(wire.in.data(), wire.in.data() + wire.in_at, wire.in_end - wire.in_at);
    wire.in_end -= wire.in_at;
    wire.in_at = 0;
}

/// Goes on with what has been held back.
void release(Wire &wire) {
    if (!wire.is_held) return;
    wire.is_held = false;
    watch(wire, EPOLL_CTL_ADD, wire.wants_write);
    parse(wire);
    pump(wire);
}

void read_wire(Wire &wire) {
    auto keep = wire.shared_from_this();
    for (int turn = 0; turn < 4 && wire.fd >= 0 && !wire.is_held; turn++) {
        ssize_t got = recv(wire.fd, wire.in.data() + wire.in_end, wire.in.size() - wire.in_end,
                           MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) break;
        if (got <= 0) {
            close_wire(wire);
            lose_peer(wire);
            // A card that is dead cannot say so: that takes the peer's own disconnecting.
            if (!wire.peer_is_dead) peer_left(wire);
            return;
        }
        bool is_full = wire.in_end + size_t(got) == wire.in.size();
        wire.in_end += size_t(got);
        parse(wire);
        if (!is_full) break;
    }
    pump(wire);
}

void handle_timer(Wire &wire) {
    Time now = Clock::now();
    auto is_over = [&](Time &end) {
        if (end == Time{} || now < end) return false;
        end = {};
        return true;
    };
    if (is_over(wire.rnr_end) && wire.qp && wire.qp->wants_receive) {
        wire.qp->wants_receive = false;
        answer(wire, Kind::NAK, wire.message, IBV_WC_RNR_RETRY_EXC_ERR);
    }
    if (is_over(wire.leave_end) && !wire.has_told) peer_left(wire);
    if (is_over(wire.wait_end) && wire.id) tell(*wire.id, RDMA_CM_EVENT_TIMEWAIT_EXIT);
    if (wire.is_connecting) try_connect(wire);
    pump(wire);
}

} // namespace
