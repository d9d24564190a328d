// Completions, and the end of queue pairs.
#pragma once

namespace {

void wake(Card &card) {
    bool asleep;
    {
        std::lock_guard<std::mutex> lock(card.lock);
        asleep = card.is_asleep;
        card.is_asleep = false;
    }
    uint64_t one = 1;
    if (asleep) (void)!write(card.bell, &one, sizeof one);
}

/// Tells the card that a queue pair has something for it.
void ring(Qp &qp) {
    if (qp.is_rung.exchange(true)) return;
    {
        std::lock_guard<std::mutex> lock(qp.card->lock);
        qp.card->rung.push_back(&qp);
    }
    wake(*qp.card);
}

void show(Cq &cq, const Completion &completion, bool is_solicited) {
    std::lock_guard<std::mutex> lock(cq.lock);
    if (cq.lost) return;
    if (int(cq.found.size()) >= cq.cqe) {
        // The card ends its queue pairs: whoever is here holds a lock of one.
        cq.lost = true;
        {
            std::lock_guard<std::mutex> lock(cq.card->lock);
            cq.card->lost.push_back(&cq);
        }
        wake(*cq.card);
        return;
    }
    cq.found.push_back(completion);
    cq.count.store(int(cq.found.size()), std::memory_order_release);
    if (cq.armed == Cq::NOT || (cq.armed == Cq::SOLICITED && !is_solicited)) return;
    cq.armed = Cq::NOT;
    if (auto channel = static_cast<Channel *>(cq.channel)) {
        std::lock_guard<std::mutex> lock(channel->lock);
        channel->events.push_back(&cq);
        channel->tokens.give();
    }
}

/// A completion with a meaning in the fields that have one whatever the status.
Completion completed(Qp &qp, uint64_t wr_id, ibv_wc_status status) {
    Completion made;
    memset(&made.wc, status == IBV_WC_SUCCESS ? 0 : 0xa5, sizeof made.wc);
    made.wc.wr_id = wr_id;
    made.wc.status = status;
    made.wc.vendor_err = status == IBV_WC_SUCCESS ? 0 : 0x80u + status;
    made.wc.qp_num = qp.qp_num;
    made.qp = &qp;
    made.sends = made.receives = 0;
    return made;
}

ibv_wc_opcode opcode_of(ibv_wr_opcode opcode) {
    switch (opcode) {
    case IBV_WR_RDMA_READ: return IBV_WC_RDMA_READ;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM: return IBV_WC_RDMA_WRITE;
    default: return IBV_WC_SEND;
    }
}

/// Under the queue pair's lock.
void end_send(Qp &qp, const Request &request, ibv_wc_status status) {
    if (status == IBV_WC_SUCCESS && !request.is_signalled) {
        qp.silent++;
        return;
    }
    Completion made = completed(qp, request.wr_id, status);
    made.sends = qp.silent + 1;
    qp.silent = 0;
    if (status == IBV_WC_SUCCESS) {
        made.wc.opcode = opcode_of(request.opcode);
        made.wc.byte_len = uint32_t(request.length);
    }
    show(*static_cast<Cq *>(qp.send_cq), made, status != IBV_WC_SUCCESS);
}

void end_receive(Qp &qp, const Receive &receive, ibv_wc_status status) {
    Completion made = completed(qp, receive.wr_id, status);
    made.receives = 1;
    show(*static_cast<Cq *>(qp.recv_cq), made, true);
}

void raise(Context *context, ibv_event_type type, Qp *qp, Cq *cq) {
    AsyncEvent event{};
    event.event.event_type = type;
    event.qp = qp;
    event.cq = cq;
    if (qp) event.event.element.qp = qp;
    else if (cq) event.event.element.cq = cq;
    else event.event.element.port_num = 1;
    context->events.push_back(event);
    context->tokens.give();
}

void raise(Qp &qp, ibv_event_type type) {
    raise(static_cast<Context *>(qp.context), type, &qp, nullptr);
}

void say_gone(Wire &wire);

/// Takes a queue pair to the error state: the first request outstanding gets the status, all others
/// are flushed. `receiving` is what the message under way has done to its receive.
void end_qp(Qp &qp, ibv_wc_status status, ibv_wc_status receiving = IBV_WC_WR_FLUSH_ERR) {
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        qp.state = IBV_QPS_ERR;
        for (const Request &request : qp.sends) {
            end_send(qp, request, status == IBV_WC_SUCCESS ? IBV_WC_WR_FLUSH_ERR : status);
            status = IBV_WC_SUCCESS;
        }
        qp.sends.clear();
        if (qp.current) end_receive(qp, *qp.current, receiving);
        qp.current.reset();
        for (const Receive &receive : qp.receives) end_receive(qp, receive, IBV_WC_WR_FLUSH_ERR);
        qp.receives.clear();
    }
    if (qp.wire) say_gone(*qp.wire);
}

/// Fails the first request now, or when those before it have completed.
void fail_request(Qp &qp, Request &request, ibv_wc_status status) {
    bool is_first;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        request.failure = status;
        is_first = &request == &qp.sends.front();
    }
    if (is_first) end_qp(qp, status);
}

/// All requests before this one have completed.
void complete_until(Qp &qp, uint64_t message) {
    ibv_wc_status failure = IBV_WC_SUCCESS;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        while (qp.first < message && qp.first < qp.next && !qp.sends.empty()) {
            if (qp.sends.front().opcode == IBV_WR_RDMA_READ) qp.reads--;
            end_send(qp, qp.sends.front(), IBV_WC_SUCCESS);
            qp.sends.pop_front();
            qp.first++;
        }
        if (!qp.sends.empty()) failure = qp.sends.front().failure;
    }
    if (failure != IBV_WC_SUCCESS) end_qp(qp, failure);
}

/// A completion queue has overflowed: what uses it is of no use any more.
void end_cq(Cq &cq) {
    say("completion queue %u of %d entries is full", cq.handle, cq.cqe);
    raise(static_cast<Context *>(cq.context), IBV_EVENT_CQ_ERR, nullptr, &cq);
    for (Qp *qp : cq.card->qps)
        if (qp->send_cq == &cq || qp->recv_cq == &cq) {
            raise(*qp, IBV_EVENT_QP_FATAL);
            end_qp(*qp, IBV_WC_SUCCESS);
        }
}

// The calls that go through a context's table -----------------------------------------------------

int poll_cq(ibv_cq *polled, int room, ibv_wc *found) {
    Cq &cq = *static_cast<Cq *>(polled);
    if (!cq.count.load(std::memory_order_acquire)) return cq.lost ? -1 : 0;
    std::lock_guard<std::mutex> lock(cq.lock);
    int taken = 0;
    for (; taken < room && !cq.found.empty(); taken++) {
        const Completion &next = cq.found.front();
        found[taken] = next.wc;
        next.qp->sends_used -= next.sends;
        next.qp->receives_used -= next.receives;
        cq.found.pop_front();
    }
    cq.count.store(int(cq.found.size()), std::memory_order_release);
    return taken;
}

int req_notify_cq(ibv_cq *armed, int solicited_only) {
    Cq &cq = *static_cast<Cq *>(armed);
    std::lock_guard<std::mutex> lock(cq.lock);
    if (!solicited_only) cq.armed = Cq::ANY;
    else if (cq.armed == Cq::NOT) cq.armed = Cq::SOLICITED;
    return 0;
}

/// Why a request cannot be posted, or 0.
int refused(const Qp &qp, const ibv_send_wr &wr, uint64_t length) {
    const ibv_qp_cap &cap = qp.init.cap;
    switch (wr.opcode) {
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_SEND_WITH_IMM:
        if (is_iwarp()) return EINVAL;
        break;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_SEND: break;
    case IBV_WR_RDMA_READ:
        if (wr.send_flags & IBV_SEND_INLINE) return EINVAL;
        if (is_iwarp() && wr.num_sge > 1) return EINVAL;
        break;
    default: return EINVAL;
    }
    if (wr.num_sge < 0 || uint32_t(wr.num_sge) > cap.max_send_sge) return EINVAL;
    if (wr.send_flags & IBV_SEND_INLINE && length > cap.max_inline_data) return EINVAL;
    if (qp.state != IBV_QPS_RTS && qp.state != IBV_QPS_SQD && qp.state != IBV_QPS_ERR)
        return EINVAL;
    return qp.sends_used >= cap.max_send_wr ? ENOMEM : 0;
}

int post_send(ibv_qp *posted, ibv_send_wr *wr, ibv_send_wr **bad) {
    Qp &qp = *static_cast<Qp *>(posted);
    int code = 0;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        for (; wr; wr = wr->next) {
            Request request{};
            request.sges.assign(wr->sg_list, wr->sg_list + std::max(wr->num_sge, 0));
            request.length = bytes_of(request.sges);
            if ((code = refused(qp, *wr, request.length))) break;
            request.wr_id = wr->wr_id;
            request.remote = wr->wr.rdma.remote_addr;
            request.rkey = wr->wr.rdma.rkey;
            request.opcode = wr->opcode;
            request.flags = wr->send_flags;
            request.imm = wr->imm_data;
            request.is_signalled = qp.init.sq_sig_all || wr->send_flags & IBV_SEND_SIGNALED;
            if (wr->send_flags & IBV_SEND_INLINE)
                for (const ibv_sge &sge : request.sges)
                    request.inlined.append(reinterpret_cast<char *>(sge.addr), sge.length);
            qp.sends_used++;
            request.ordinal = ++qp.card->posted;
            if (qp.state == IBV_QPS_ERR) end_send(qp, request, IBV_WC_WR_FLUSH_ERR);
            else qp.sends.push_back(std::move(request));
        }
    }
    if (code && bad) *bad = wr;
    ring(qp);
    return code;
}

int post_recv(ibv_qp *posted, ibv_recv_wr *wr, ibv_recv_wr **bad) {
    Qp &qp = *static_cast<Qp *>(posted);
    int code = 0;
    {
        std::lock_guard<std::mutex> lock(qp.lock);
        for (; wr; wr = wr->next) {
            const ibv_qp_cap &cap = qp.init.cap;
            bool fits = wr->num_sge >= 0 && uint32_t(wr->num_sge) <= cap.max_recv_sge;
            if (qp.state == IBV_QPS_RESET || !fits) code = EINVAL;
            else if (qp.receives_used >= cap.max_recv_wr) code = ENOMEM;
            if (code) break;
            Receive receive{wr->wr_id, {wr->sg_list, wr->sg_list + wr->num_sge}};
            qp.receives_used++;
            if (qp.state == IBV_QPS_ERR) end_receive(qp, receive, IBV_WC_WR_FLUSH_ERR);
            else qp.receives.push_back(std::move(receive));
        }
    }
    if (code && bad) *bad = wr;
    if (qp.wants_receive) ring(qp);
    return code;
}

} // namespace
