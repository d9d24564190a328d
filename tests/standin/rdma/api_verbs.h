// The calls of libibverbs.
#pragma once

namespace {

Context *make_context(Card &card) {
    start(card);
    Context *context = new Context{};
    context->device = &card;
    context->ops.poll_cq = poll_cq;
    context->ops.req_notify_cq = req_notify_cq;
    context->ops.post_send = post_send;
    context->ops.post_recv = post_recv;
    context->cmd_fd = -1;
    context->async_fd = context->tokens.fd;
    context->num_comp_vectors = 1;
    pthread_mutex_init(&context->mutex, nullptr);
    context->card = &card;
    card.contexts.insert(context);
    return context;
}

Card &card_of(ibv_context *context) { return *static_cast<Context *>(context)->card; }

template <class Object> void init_waits(Object &object) {
    pthread_mutex_init(&object.mutex, nullptr);
    pthread_cond_init(&object.cond, nullptr);
}

/// Waits until as many events have been acknowledged as were taken.
template <class Object>
void wait_for(Object &object, uint32_t &acknowledged, uint32_t taken, const char *what) {
    pthread_mutex_lock(&object.mutex);
    timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 5;
    while (acknowledged != taken)
        if (pthread_cond_timedwait(&object.cond, &object.mutex, &end) == ETIMEDOUT) {
            say("%s waits for events that were taken and not acknowledged", what);
            end.tv_sec += 3600;
        }
    pthread_mutex_unlock(&object.mutex);
}

template <class Object>
void acknowledge(Object &object, uint32_t &acknowledged, uint32_t count) {
    pthread_mutex_lock(&object.mutex);
    acknowledged += count;
    pthread_cond_broadcast(&object.cond);
    pthread_mutex_unlock(&object.mutex);
}

/// Takes the completions of a queue pair out of a queue.
void clean(Cq &cq, Qp &qp) {
    std::lock_guard<std::mutex> lock(cq.lock);
    auto is_its = [&](const Completion &completion) { return completion.qp == &qp; };
    cq.found.erase(std::remove_if(cq.found.begin(), cq.found.end(), is_its), cq.found.end());
    cq.count = int(cq.found.size());
}

void detach(Qp &qp) {
    if (!qp.wire) return;
    say_gone(*qp.wire);
    qp.wire->qp = nullptr;
    qp.wire = nullptr;
}

Qp *make_qp(Pd *pd, ibv_qp_init_attr *init) {
    Card &card = *pd->card;
    const ibv_qp_cap &cap = init->cap;
    long inline_max = number("STANDIN_RDMA_INLINE", 220);
    bool fits = cap.max_send_wr <= QUEUE_MAX && cap.max_recv_wr <= QUEUE_MAX &&
                cap.max_send_sge <= SGE_MAX && cap.max_recv_sge <= SGE_MAX &&
                cap.max_inline_data <= uint32_t(inline_max);
    bool serves = init->send_cq && init->recv_cq && !init->srq && init->qp_type == IBV_QPT_RC;
    if (!serves || init->send_cq->context != pd->context || init->recv_cq->context != pd->context)
        return none<Qp>(EINVAL);
    if (!fits) return none<Qp>(EINVAL);
    if (card.is_dead) return none<Qp>(EIO);
    Qp *qp = new Qp{};
    qp->context = pd->context;
    qp->qp_context = init->qp_context;
    qp->pd = pd;
    qp->send_cq = init->send_cq;
    qp->recv_cq = init->recv_cq;
    qp->qp_num = chance() & 0xffffff;
    qp->handle = uint32_t(world().numbers++);
    qp->state = IBV_QPS_RESET;
    qp->qp_type = IBV_QPT_RC;
    init_waits(*qp);
    qp->card = &card;
    qp->init = *init;
    qp->attr.path_mtu = IBV_MTU_4096;
    qp->attr.port_num = 1;
    qp->attr.timeout = 14;
    pd->users++;
    static_cast<Cq *>(qp->send_cq)->users++;
    static_cast<Cq *>(qp->recv_cq)->users++;
    card.qps.insert(qp);
    return qp;
}

void destroy_qp(Qp *qp) {
    Card &card = *qp->card;
    {
        Hold hold;
        if (card.dying == qp) die(card);
        detach(*qp);
        card.qps.erase(qp);
        {
            std::lock_guard<std::mutex> lock(card.lock);
            auto &rung = card.rung;
            rung.erase(std::remove(rung.begin(), rung.end(), qp), rung.end());
        }
        auto &events = static_cast<Context *>(qp->context)->events;
        auto is_its = [&](const AsyncEvent &event) { return event.qp == qp; };
        events.erase(std::remove_if(events.begin(), events.end(), is_its), events.end());
        for (ibv_cq *cq : {qp->send_cq, qp->recv_cq}) {
            clean(*static_cast<Cq *>(cq), *qp);
            static_cast<Cq *>(cq)->users--;
        }
        static_cast<Pd *>(qp->pd)->users--;
    }
    wait_for(*qp, qp->events_completed, qp->taken, "the end of a queue pair");
    delete qp;
}

/// Moves a queue pair from state to state, if there is such a move. Under the world's lock.
int move_qp(Qp &qp, ibv_qp_state to) {
    switch (to) {
    case IBV_QPS_ERR: end_qp(qp, IBV_WC_SUCCESS); return 0;
    case IBV_QPS_RESET: {
        detach(qp);
        std::lock_guard<std::mutex> lock(qp.lock);
        for (ibv_cq *cq : {qp.send_cq, qp.recv_cq}) clean(*static_cast<Cq *>(cq), qp);
        qp.sends.clear();
        qp.receives.clear();
        qp.current.reset();
        qp.sends_used = qp.receives_used = qp.silent = qp.epoch = 0;
        qp.first = qp.next = qp.offset = 0;
        qp.reads = 0;
        qp.is_paused = false;
        qp.wants_receive = false;
        qp.state = to;
        return 0;
    }
    default: break;
    }
    std::lock_guard<std::mutex> lock(qp.lock);
    bool may = qp.state == to || (to == IBV_QPS_INIT && qp.state == IBV_QPS_RESET) ||
               (to == IBV_QPS_RTR && qp.state == IBV_QPS_INIT) ||
               (to == IBV_QPS_RTS && qp.state == IBV_QPS_RTR);
    if (may) qp.state = to;
    return may ? 0 : EINVAL;
}

} // namespace

extern "C" {

// Devices -----------------------------------------------------------------------------------------

ibv_device **ibv_get_device_list(int *count) {
    auto &cards = world().cards;
    if (count) *count = int(cards.size());
    if (cards.empty()) return none<ibv_device *>(ENOSYS);
    auto list = static_cast<ibv_device **>(calloc(cards.size() + 1, sizeof(ibv_device *)));
    for (size_t at = 0; at < cards.size(); at++) list[at] = cards[at].get();
    return list;
}

void ibv_free_device_list(ibv_device **list) { free(list); }

const char *ibv_get_device_name(ibv_device *device) { return device->name; }

ibv_context *ibv_open_device(ibv_device *device) {
    Hold hold;
    Card &card = *static_cast<Card *>(device);
    return card.is_dead ? none<Context>(EIO) : make_context(card);
}

int ibv_close_device(ibv_context *context) {
    Hold hold;
    card_of(context).contexts.erase(static_cast<Context *>(context));
    delete static_cast<Context *>(context);
    return 0;
}

int ibv_query_device(ibv_context *context, ibv_device_attr *attr) {
    *attr = {};
    strcpy(attr->fw_ver, "standin");
    attr->node_guid = attr->sys_image_guid = card_of(context).address;
    attr->max_mr_size = ~0ull >> 1;
    attr->page_size_cap = uint64_t(sysconf(_SC_PAGESIZE));
    attr->max_qp = 4096;
    attr->max_qp_wr = QUEUE_MAX;
    attr->max_sge = attr->max_sge_rd = SGE_MAX;
    attr->max_cq = 4096;
    attr->max_cqe = 1 << 22;
    attr->max_mr = 1 << 20;
    attr->max_pd = 4096;
    attr->max_qp_rd_atom = attr->max_qp_init_rd_atom = READS_MAX;
    attr->max_res_rd_atom = 4096 * READS_MAX;
    attr->max_pkeys = 1;
    attr->local_ca_ack_delay = 16;
    attr->phys_port_cnt = 1;
    return 0;
}

int ibv_query_port(ibv_context *context, uint8_t port, _compat_ibv_port_attr *attr) {
    if (port != 1) return EINVAL;
    ibv_port_attr made{};
    made.state = card_of(context).is_dead ? IBV_PORT_DOWN : IBV_PORT_ACTIVE;
    made.max_mtu = made.active_mtu = IBV_MTU_4096;
    made.gid_tbl_len = 1;
    made.max_msg_sz = MESSAGE_MAX;
    made.pkey_tbl_len = 1;
    made.active_width = 2;
    made.active_speed = 32;
    made.phys_state = 5;
    made.link_layer = IBV_LINK_LAYER_ETHERNET;
    memcpy(static_cast<void *>(attr), &made, offsetof(ibv_port_attr, port_cap_flags2));
    return 0;
}

int ibv_query_gid(ibv_context *context, uint8_t port, int index, ibv_gid *gid) {
    if (port != 1 || index) return fail(EINVAL);
    memset(gid, 0, sizeof *gid);
    in_addr_t address = card_of(context).address;
    if (is_iwarp()) {
        // The hardware's address, as of a network card.
        gid->raw[0] = 2;
        memcpy(gid->raw + 2, &address, 4);
        return 0;
    }
    gid->raw[10] = gid->raw[11] = 0xff;
    memcpy(gid->raw + 12, &address, 4);
    return 0;
}

int ibv_get_async_event(ibv_context *context, ibv_async_event *event) {
    Context &from = *static_cast<Context *>(context);
    for (;;) {
        if (!from.tokens.take()) return -1;
        Hold hold;
        if (from.events.empty()) continue;
        AsyncEvent next = from.events.front();
        from.events.pop_front();
        if (next.qp) next.qp->taken++;
        if (next.cq) next.cq->async_taken++;
        *event = next.event;
        return 0;
    }
}

void ibv_ack_async_event(ibv_async_event *event) {
    switch (event->event_type) {
    case IBV_EVENT_CQ_ERR: {
        ibv_cq *cq = event->element.cq;
        return acknowledge(*cq, cq->async_events_completed, 1);
    }
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR: {
        ibv_qp *qp = event->element.qp;
        return acknowledge(*qp, qp->events_completed, 1);
    }
    default: return;
    }
}

#define NAME(name)                                                                                 \
    case name: return #name
const char *ibv_event_type_str(ibv_event_type event) {
    switch (event) {
        NAME(IBV_EVENT_CQ_ERR);
        NAME(IBV_EVENT_QP_FATAL);
        NAME(IBV_EVENT_QP_REQ_ERR);
        NAME(IBV_EVENT_QP_ACCESS_ERR);
        NAME(IBV_EVENT_DEVICE_FATAL);
    default: return "IBV_EVENT of another kind";
    }
}

const char *ibv_wc_status_str(ibv_wc_status status) {
    switch (status) {
        NAME(IBV_WC_SUCCESS);
        NAME(IBV_WC_LOC_LEN_ERR);
        NAME(IBV_WC_LOC_QP_OP_ERR);
        NAME(IBV_WC_LOC_PROT_ERR);
        NAME(IBV_WC_WR_FLUSH_ERR);
        NAME(IBV_WC_REM_INV_REQ_ERR);
        NAME(IBV_WC_REM_ACCESS_ERR);
        NAME(IBV_WC_REM_OP_ERR);
        NAME(IBV_WC_RETRY_EXC_ERR);
        NAME(IBV_WC_RNR_RETRY_EXC_ERR);
    default: return "IBV_WC of another kind";
    }
}

// Memory ------------------------------------------------------------------------------------------

ibv_pd *ibv_alloc_pd(ibv_context *context) {
    Pd *pd = new Pd{};
    pd->context = context;
    pd->card = &card_of(context);
    return pd;
}

int ibv_dealloc_pd(ibv_pd *pd) {
    Hold hold;
    if (static_cast<Pd *>(pd)->users) return EBUSY;
    delete static_cast<Pd *>(pd);
    return 0;
}

ibv_mr *ibv_reg_mr(ibv_pd *pd, void *at, size_t bytes, int access) {
    return register_memory(pd, at, static_cast<char *>(at), bytes, uintptr_t(at),
                           unsigned(access));
}

ibv_mr *ibv_reg_mr_iova2(ibv_pd *pd, void *at, size_t bytes, uint64_t iova, unsigned access) {
    return register_memory(pd, at, static_cast<char *>(at), bytes, iova, access);
}

ibv_mr *ibv_reg_dmabuf_mr(ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova, int fd,
                          int access) {
    uint64_t page = uint64_t(sysconf(_SC_PAGESIZE)), skip = offset % page;
    int protection = PROT_READ | (access & IBV_ACCESS_LOCAL_WRITE ? PROT_WRITE : 0);
    void *mapped = mmap(nullptr, bytes + skip, protection, MAP_SHARED, fd, off_t(offset - skip));
    if (mapped == MAP_FAILED) return nullptr;
    // An area that no object is behind cannot be read.
    Mr *mr = register_memory(pd, reinterpret_cast<void *>(offset),
                             static_cast<char *>(mapped) + skip, bytes, iova, unsigned(access));
    int code = errno;
    if (!mr) {
        munmap(mapped, bytes + skip);
        return none<Mr>(code);
    }
    mr->mapped = mapped;
    mr->mapped_bytes = bytes + skip;
    return mr;
}

int ibv_dereg_mr(ibv_mr *mr) {
    forget_memory(static_cast<Mr *>(mr));
    return 0;
}

// Completions -------------------------------------------------------------------------------------

ibv_comp_channel *ibv_create_comp_channel(ibv_context *context) {
    Channel *channel = new Channel{};
    channel->context = context;
    channel->fd = channel->tokens.fd;
    return channel;
}

int ibv_destroy_comp_channel(ibv_comp_channel *destroyed) {
    Channel *channel = static_cast<Channel *>(destroyed);
    {
        std::lock_guard<std::mutex> lock(channel->lock);
        if (channel->refcnt) return EBUSY;
    }
    delete channel;
    return 0;
}

ibv_cq *ibv_create_cq(ibv_context *context, int room, void *cq_context, ibv_comp_channel *channel,
                      int vector) {
    Hold hold;
    if (room <= 0 || room > 1 << 22 || vector < 0 || vector >= context->num_comp_vectors)
        return none<Cq>(EINVAL);
    if (card_of(context).is_dead) return none<Cq>(EIO);
    Cq *cq = new Cq{};
    cq->context = context;
    cq->channel = channel;
    cq->cq_context = cq_context;
    cq->handle = uint32_t(world().numbers++);
    cq->cqe = room;
    init_waits(*cq);
    cq->card = &card_of(context);
    if (channel) {
        std::lock_guard<std::mutex> lock(static_cast<Channel *>(channel)->lock);
        channel->refcnt++;
    }
    return cq;
}

int ibv_destroy_cq(ibv_cq *destroyed) {
    Cq *cq = static_cast<Cq *>(destroyed);
    uint32_t taken = 0;
    {
        Hold hold;
        if (cq->users) return EBUSY;
        {
            std::lock_guard<std::mutex> lock(cq->card->lock);
            auto &lost = cq->card->lost;
            lost.erase(std::remove(lost.begin(), lost.end(), cq), lost.end());
        }
        auto &events = static_cast<Context *>(cq->context)->events;
        auto is_its = [&](const AsyncEvent &event) { return event.cq == cq; };
        events.erase(std::remove_if(events.begin(), events.end(), is_its), events.end());
        if (auto channel = static_cast<Channel *>(cq->channel)) {
            std::lock_guard<std::mutex> lock(channel->lock);
            auto &queue = channel->events;
            queue.erase(std::remove(queue.begin(), queue.end(), cq), queue.end());
            channel->refcnt--;
            taken = cq->taken;
        }
    }
    wait_for(*cq, cq->comp_events_completed, taken, "the end of a completion queue");
    wait_for(*cq, cq->async_events_completed, cq->async_taken, "the end of a completion queue");
    delete cq;
    return 0;
}

int ibv_get_cq_event(ibv_comp_channel *taken, ibv_cq **cq, void **cq_context) {
    Channel &channel = *static_cast<Channel *>(taken);
    for (;;) {
        if (!channel.tokens.take()) return -1;
        std::lock_guard<std::mutex> lock(channel.lock);
        if (channel.events.empty()) continue;
        Cq *next = channel.events.front();
        channel.events.pop_front();
        next->taken++;
        *cq = next;
        *cq_context = next->cq_context;
        return 0;
    }
}

void ibv_ack_cq_events(ibv_cq *cq, unsigned count) {
    if (count) acknowledge(*cq, cq->comp_events_completed, count);
}

// Queue pairs -------------------------------------------------------------------------------------

int ibv_modify_qp(ibv_qp *modified, ibv_qp_attr *attr, int mask) {
    Hold hold;
    Qp &qp = *static_cast<Qp *>(modified);
    if (mask & IBV_QP_STATE)
        if (int code = move_qp(qp, attr->qp_state)) return code;
    std::lock_guard<std::mutex> lock(qp.lock);
    if (mask & IBV_QP_ACCESS_FLAGS) qp.attr.qp_access_flags = attr->qp_access_flags;
    if (mask & IBV_QP_TIMEOUT) qp.attr.timeout = attr->timeout;
    if (mask & IBV_QP_RETRY_CNT) qp.attr.retry_cnt = attr->retry_cnt;
    if (mask & IBV_QP_RNR_RETRY) qp.attr.rnr_retry = attr->rnr_retry;
    if (mask & IBV_QP_MIN_RNR_TIMER) qp.attr.min_rnr_timer = attr->min_rnr_timer;
    if (mask & IBV_QP_PATH_MTU) qp.attr.path_mtu = attr->path_mtu;
    return 0;
}

int ibv_query_qp(ibv_qp *asked, ibv_qp_attr *attr, int, ibv_qp_init_attr *init) {
    Qp &qp = *static_cast<Qp *>(asked);
    std::lock_guard<std::mutex> lock(qp.lock);
    *attr = qp.attr;
    attr->qp_state = attr->cur_qp_state = qp.state;
    attr->cap = qp.init.cap;
    *init = qp.init;
    return 0;
}

} // extern "C"
