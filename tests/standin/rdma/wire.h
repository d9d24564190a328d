// The wire between two queue pairs: packets out and in, and what they do.
//
// Each end is a requester, whose requests go out in order and stay in its queue until the other end
// has acknowledged them, and a responder, which carries out the other's. A responder without a
// receive for a message says RNR and drops all that follows, until it says GO: the requester begins
// again with that message then, and reads its source anew. The epoch tells new from old.
#pragma once

namespace {

constexpr size_t OUT_MAX = 2 * PACKET;

void watch(Wire &wire, int operation, bool wants_write) {
    epoll_event event{};
    event.events = EPOLLIN | (wants_write ? uint32_t(EPOLLOUT) : 0u);
    event.data.u64 = wire.number;
    epoll_ctl(wire.card->epoll, operation, wire.fd, &event);
    wire.wants_write = wants_write;
}

void set_timer(Wire &wire, Time at) {
    wire.card->timers.emplace(at, wire.shared_from_this());
    wake(*wire.card);
}

void set_timer(Wire &wire, Time &end, std::chrono::milliseconds after) {
    end = Clock::now() + after;
    set_timer(wire, end);
}

void close_wire(Wire &wire) {
    if (wire.fd < 0) return;
    close(wire.fd);
    wire.fd = -1;
    wire.is_gone = true;
    wire.card->wires.erase(wire.number);
}

/// Writes what there is. False if the peer takes no more for now, or ever.
bool flush(Wire &wire) {
    auto keep = wire.shared_from_this();
    if (wire.fd < 0) return false;
    if (wire.is_connecting) return false;
    while (wire.out_at < wire.out.size()) {
        ssize_t sent = send(wire.fd, wire.out.data() + wire.out_at, wire.out.size() - wire.out_at,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) {
            if (!wire.wants_write && !wire.is_held) watch(wire, EPOLL_CTL_MOD, true);
            else if (!wire.wants_write) wire.wants_write = true;
            return false;
        }
        // Who has gone is found when reading, after what it has said last.
        wire.out_at = sent < 0 ? wire.out.size() : wire.out_at + size_t(sent);
    }
    wire.out.clear();
    wire.out_at = 0;
    if (wire.wants_write && !wire.is_held) watch(wire, EPOLL_CTL_MOD, false);
    if (!wire.is_closing) return true;
    close_wire(wire);
    return false;
}

void put(Wire &wire, const Frame &frame, const void *data = nullptr) {
    if (wire.fd < 0 || wire.is_closing) return;
    wire.out.append(reinterpret_cast<const char *>(&frame), sizeof frame);
    if (data) wire.out.append(static_cast<const char *>(data), frame.bytes);
}

void put(Wire &wire, Kind kind, const Greeting *greeting = nullptr) {
    Frame frame{};
    frame.kind = kind;
    frame.bytes = greeting ? uint32_t(sizeof *greeting) : 0;
    put(wire, frame, greeting);
}

void put_answers(Wire &wire) {
    // A read that is not answered now never is, nor what follows it.
    for (const Answer &answer : wire.answers) {
        if (answer.frame.kind == Kind::DATA) break;
        put(wire, answer.frame);
    }
    wire.answers.clear();
}

void say_gone(Wire &wire) {
    if (wire.said_gone) return;
    wire.said_gone = true;
    put_answers(wire);
    put(wire, Kind::GONE);
    flush(wire);
}

/// Nobody answers requests: the first fails, if there is one.
void fail_requests(Qp &qp) {
    if (qp.state == IBV_QPS_ERR || qp.state == IBV_QPS_RESET) return;
    bool waits;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        waits = !qp.sends.empty();
    }
    if (waits) end_qp(qp, IBV_WC_RETRY_EXC_ERR);
}

/// The peer answers no request any more.
void lose_peer(Wire &wire) {
    wire.is_gone = true;
    if (wire.qp) fail_requests(*wire.qp);
}

// Requests ----------------------------------------------------------------------------------------

void die(Card &card);

/// Whether it is time for the request to begin.
bool is_ready(Wire &wire, Request &request) {
    Card &card = *wire.card;
    if (request.ready == Time{}) {
        Time now = request.ready = Clock::now();
        if (card.slow > 0)
            request.ready = card.free =
                std::max(card.free, now) + std::chrono::microseconds(card.slow);
        bool is_late = !(request.flags & IBV_SEND_INLINE) && chance() % 4 == 0;
        if (is_late) request.ready += std::chrono::microseconds(card.late);
        if (request.ready > now) set_timer(wire, request.ready);
    }
    return Clock::now() >= request.ready;
}

/// The request that goes out next, if there is one and it may.
Request *next_request(Wire &wire) {
    Qp *qp = wire.qp;
    if (!qp || wire.is_gone || qp->is_paused || qp->state != IBV_QPS_RTS) return nullptr;
    Request *next;
    {
        std::lock_guard<std::mutex> lock(qp->lock);
        size_t at = size_t(qp->next - qp->first);
        if (at >= qp->sends.size()) return nullptr;
        next = &qp->sends[at];
    }
    if (next->failure != IBV_WC_SUCCESS) return nullptr;
    if (next->is_begun) return next;
    Card &card = *wire.card;
    if (!is_ready(wire, *next)) return nullptr;
    if (next->flags & IBV_SEND_FENCE && qp->reads) return nullptr;
    if (next->opcode == IBV_WR_RDMA_READ && qp->reads >= wire.depth && wire.depth) return nullptr;
    if (card.fails >= 0 && next->ordinal >= card.fails && !card.dying) {
        uint64_t packets = std::max<uint64_t>(1, (next->length + PACKET - 1) / PACKET);
        card.dying = qp;
        uint32_t how = chance() % 3;
        card.last_packets = how == 0 ? 0 : how == 1 ? packets : chance() % (packets + 1);
    }
    next->is_begun = true;
    return next;
}

/// Puts the next packet of requests. False if there is none.
bool put_request(Wire &wire) {
    Card &card = *wire.card;
    if (card.dying && card.dying != wire.qp) return false;
    Request *request = next_request(wire);
    if (card.dying == wire.qp && card.dying && (!request || !card.last_packets)) {
        die(card);
        return false;
    }
    if (!request) return false;
    Qp &qp = *wire.qp;
    bool is_read = request->opcode == IBV_WR_RDMA_READ;
    if (is_read && !wire.depth) {
        fail_request(qp, *request, IBV_WC_LOC_QP_OP_ERR);
        return false;
    }
    if (request->length > MESSAGE_MAX) {
        fail_request(qp, *request, IBV_WC_LOC_LEN_ERR);
        return false;
    }
    int access = !is_read ? 0 : IBV_ACCESS_LOCAL_WRITE | (is_iwarp() ? IBV_ACCESS_REMOTE_WRITE : 0);
    bool is_inline = request->flags & IBV_SEND_INLINE;
    if (!is_inline && !all_allowed(qp.pd, request->sges, access)) {
        fail_request(qp, *request, IBV_WC_LOC_PROT_ERR);
        return false;
    }
    uint64_t rest = request->length - qp.offset;
    Frame frame{};
    frame.kind = Kind::REQUEST;
    frame.opcode = uint8_t(request->opcode);
    frame.is_first = !qp.offset;
    frame.bytes = is_read ? 0 : uint32_t(std::min<uint64_t>(rest, PACKET));
    frame.is_last = is_read || frame.bytes == rest;
    frame.is_solicited = request->flags & IBV_SEND_SOLICITED;
    frame.epoch = qp.epoch;
    frame.rkey = request->rkey;
    frame.imm = request->imm;
    frame.message = qp.next;
    frame.address = request->remote + qp.offset;
    frame.total = request->length;
    put(wire, frame);
    if (is_inline) wire.out.append(request->inlined, qp.offset, frame.bytes);
    else if (!is_read)
        pieces(qp.pd, request->sges, qp.offset, frame.bytes, 0,
               [&](char *at, uint64_t bytes) { wire.out.append(at, bytes); });
    qp.offset += frame.bytes;
    if (frame.is_last) {
        qp.next++;
        qp.offset = 0;
        if (is_read) qp.reads++;
    }
    if (card.dying == &qp && !--card.last_packets) {
        die(card);
        return false;
    }
    return true;
}

void handle_data(Wire &wire, const Frame &frame, const char *data) {
    Qp &qp = *wire.qp;
    Request *read = nullptr;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        size_t at = size_t(frame.message - qp.first);
        if (frame.message < qp.first || at >= qp.sends.size()) return;
        read = &qp.sends[at];
    }
    int access = IBV_ACCESS_LOCAL_WRITE | (is_iwarp() ? IBV_ACCESS_REMOTE_WRITE : 0);
    auto part = [&](char *at, uint64_t bytes) {
        place(at, data, bytes);
        data += bytes;
    };
    if (!pieces(qp.pd, read->sges, read->read, frame.bytes, access, part)) {
        complete_until(qp, frame.message);
        return end_qp(qp, IBV_WC_LOC_PROT_ERR);
    }
    read->read += frame.bytes;
    if (read->read == read->length) complete_until(qp, frame.message + 1);
}

void handle_rnr(Wire &wire, const Frame &frame) {
    Qp &qp = *wire.qp;
    complete_until(qp, frame.message);
    if (qp.state != IBV_QPS_RTS) return;
    // Those from this one on go out once more.
    std::lock_guard<std::mutex> lock(qp.lock);
    for (uint64_t at = frame.message; at < qp.next; at++) {
        Request &request = qp.sends[size_t(at - qp.first)];
        if (request.opcode == IBV_WR_RDMA_READ) qp.reads--;
        request.read = 0;
        request.is_begun = false;
    }
    qp.next = frame.message;
    qp.offset = 0;
    qp.epoch++;
    qp.is_paused = true;
}

// Answers -----------------------------------------------------------------------------------------

void answer(Wire &wire, Kind kind, uint64_t message, ibv_wc_status status = IBV_WC_SUCCESS) {
    auto &answers = wire.answers;
    if (kind == Kind::ACK && !answers.empty() && answers.back().frame.kind == Kind::ACK) {
        answers.back().frame.message = message;
        return;
    }
    Answer made{};
    made.frame.kind = kind;
    made.frame.status = uint8_t(status);
    made.frame.message = message;
    answers.push_back(made);
}

/// The request has done what it must not: both ends are in error.
void refuse(Wire &wire, ibv_wc_status status, ibv_event_type event,
            ibv_wc_status receiving = IBV_WC_WR_FLUSH_ERR) {
    answer(wire, Kind::NAK, wire.message, status);
    raise(*wire.qp, event);
    end_qp(*wire.qp, IBV_WC_SUCCESS, receiving);
}

char *remote(Wire &wire, uint32_t key, uint64_t address, uint64_t bytes, int access) {
    return allowed(world().remote, wire.qp->pd, key, address, bytes, access);
}

/// Takes the next receive, or says that there is none.
bool take_receive(Wire &wire) {
    Qp &qp = *wire.qp;
    std::lock_guard<std::mutex> lock(qp.lock);
    if (qp.receives.empty()) {
        qp.wants_receive = true;
        return false;
    }
    qp.current = std::make_unique<Receive>(std::move(qp.receives.front()));
    qp.receives.pop_front();
    return true;
}

/// The first packet of a request: whether the responder takes it.
bool begin_message(Wire &wire, const Frame &frame) {
    Qp &qp = *wire.qp;
    wire.inbound = frame;
    wire.placed = 0;
    auto opcode = ibv_wr_opcode(frame.opcode);
    bool is_send = opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM;
    int access = opcode == IBV_WR_RDMA_READ ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
    if (opcode == IBV_WR_RDMA_READ && !wire.resources) {
        refuse(wire, IBV_WC_REM_INV_REQ_ERR, IBV_EVENT_QP_REQ_ERR);
        return false;
    }
    if (!is_send && frame.total && !remote(wire, frame.rkey, frame.address, frame.total, access)) {
        refuse(wire, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
        return false;
    }
    if (opcode == IBV_WR_RDMA_WRITE || opcode == IBV_WR_RDMA_READ) return true;
    if (!take_receive(wire)) {
        if (is_iwarp()) {
            refuse(wire, IBV_WC_REM_OP_ERR, IBV_EVENT_QP_REQ_ERR);
            return false;
        }
        answer(wire, Kind::RNR, wire.message);
        wire.epoch++;
        // As long as the waits of that many tries.
        if (wire.rnr_retry < 7)
            set_timer(wire, wire.rnr_end, std::chrono::milliseconds(10 * wire.rnr_retry + 1));
        return false;
    }
    if (!is_send) return true;
    if (bytes_of(qp.current->sges) < frame.total) {
        refuse(wire, IBV_WC_REM_INV_REQ_ERR, IBV_EVENT_QP_REQ_ERR, IBV_WC_LOC_LEN_ERR);
        return false;
    }
    return true;
}

/// Where the packet goes, it goes. False if it may not.
bool place_packet(Wire &wire, const Frame &frame, const char *data) {
    auto opcode = ibv_wr_opcode(frame.opcode);
    if (opcode != IBV_WR_SEND && opcode != IBV_WR_SEND_WITH_IMM) {
        if (!frame.bytes) return true;
        char *to = remote(wire, frame.rkey, frame.address, frame.bytes, IBV_ACCESS_REMOTE_WRITE);
        if (to) place(to, data, frame.bytes);
        else refuse(wire, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
        return to;
    }
    auto part = [&](char *at, uint64_t bytes) {
        place(at, data, bytes);
        data += bytes;
    };
    const auto &sges = wire.qp->current->sges;
    bool may = pieces(wire.qp->pd, sges, wire.placed, frame.bytes, IBV_ACCESS_LOCAL_WRITE, part);
    if (!may) refuse(wire, IBV_WC_REM_OP_ERR, IBV_EVENT_QP_REQ_ERR, IBV_WC_LOC_PROT_ERR);
    return may;
}

void finish_receive(Wire &wire, const Frame &frame) {
    Qp &qp = *wire.qp;
    auto opcode = ibv_wr_opcode(frame.opcode);
    std::lock_guard<std::mutex> lock(qp.lock);
    Completion made = completed(qp, qp.current->wr_id, IBV_WC_SUCCESS);
    made.receives = 1;
    bool is_write = opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    made.wc.opcode = is_write ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
    made.wc.byte_len = uint32_t(frame.total);
    made.wc.src_qp = qp.attr.dest_qp_num;
    if (is_write || opcode == IBV_WR_SEND_WITH_IMM) {
        made.wc.wc_flags = IBV_WC_WITH_IMM;
        made.wc.imm_data = frame.imm;
    }
    qp.current.reset();
    show(*static_cast<Cq *>(qp.recv_cq), made, frame.is_solicited);
}

void handle_request(Wire &wire, const Frame &frame, const char *data) {
    Qp *qp = wire.qp;
    if (!qp || qp->state == IBV_QPS_ERR || frame.epoch != wire.epoch) return;
    if (frame.is_first && !begin_message(wire, frame)) return;
    if (frame.opcode == IBV_WR_RDMA_READ) {
        Answer read{};
        read.frame = frame;
        read.frame.kind = Kind::DATA;
        wire.answers.push_back(read);
        wire.message++;
        return;
    }
    if (!place_packet(wire, frame, data)) return;
    wire.placed += frame.bytes;
    if (!frame.is_last) return;
    if (qp->current) finish_receive(wire, frame);
    answer(wire, Kind::ACK, ++wire.message);
}

/// A message waited for a receive, and there is one.
void resume(Wire &wire) {
    if (!wire.qp || !wire.qp->wants_receive) return;
    {
        std::lock_guard<std::mutex> lock(wire.qp->lock);
        if (wire.qp->receives.empty()) return;
        wire.qp->wants_receive = false;
    }
    wire.rnr_end = {};
    answer(wire, Kind::GO, wire.message);
}

/// Puts the next packet of answers. False if there is none.
bool put_answer(Wire &wire) {
    if (wire.answers.empty()) return false;
    Answer &next = wire.answers.front();
    if (next.frame.kind != Kind::DATA) {
        put(wire, next.frame);
        wire.answers.pop_front();
        return true;
    }
    if (!wire.qp) return false;
    Frame frame = next.frame;
    frame.bytes = uint32_t(std::min<uint64_t>(frame.total - next.sent, PACKET));
    frame.address += next.sent;
    const char *from = nullptr;
    if (frame.total)
        from = remote(wire, frame.rkey, frame.address, frame.bytes, IBV_ACCESS_REMOTE_READ);
    if (frame.total && !from) {
        // The memory has gone since the read was taken.
        uint64_t message = frame.message;
        wire.answers.clear();
        answer(wire, Kind::NAK, message, IBV_WC_REM_ACCESS_ERR);
        raise(*wire.qp, IBV_EVENT_QP_ACCESS_ERR);
        end_qp(*wire.qp, IBV_WC_SUCCESS);
        return false;
    }
    put(wire, frame, from);
    next.sent += frame.bytes;
    if (next.sent == frame.total) wire.answers.pop_front();
    return true;
}

// Both --------------------------------------------------------------------------------------------

/// Sends what can be sent, but not for ever.
void pump(Wire &wire) {
    auto keep = wire.shared_from_this();
    if (wire.is_gone) lose_peer(wire);
    if (wire.fd < 0 || wire.is_connecting) return;
    resume(wire);
    for (int turn = 0; turn < 8; turn++) {
        bool any = !wire.out.empty();
        while (wire.fd >= 0 && wire.out.size() < OUT_MAX && !wire.is_closing) {
            // In turns, if both have something.
            wire.answers_next = !wire.answers_next;
            bool put = wire.answers_next ? put_answer(wire) || put_request(wire)
                                         : put_request(wire) || put_answer(wire);
            if (!put) break;
            any = true;
        }
        if (!flush(wire) || !any) return;
    }
    if (wire.qp) ring(*wire.qp);
}

} // namespace
