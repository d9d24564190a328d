// The calls of librdmacm for connections.
#pragma once

namespace {

Card *card_at(in_addr_t address) {
    for (auto &card : world().cards)
        if (card->address == address) return card.get();
    return nullptr;
}

/// Whether some interface of this host has the address.
bool is_own(const sockaddr_in &address) {
    sockaddr_in any_port = address;
    any_port.sin_port = 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool is = !bind(fd, reinterpret_cast<sockaddr *>(&any_port), sizeof any_port);
    close(fd);
    return is;
}

Context *context_of(Card &card) {
    if (!card.context) card.context = make_context(card);
    return card.context;
}

/// The id is the device's.
void settle(Id &id, Card &card) {
    start(card);
    context_of(card);
    id.card = &card;
    card.ids.insert(&id);
}

in_port_t some_port() { return htons(uint16_t(32768 + chance() % 28232)); }

/// Takes the port on each of the cards, or on none.
int take_port(Id &id, const std::vector<Card *> &cards, const char *kind, in_port_t port) {
    std::vector<std::shared_ptr<Listener>> made;
    for (Card *card : cards) {
        auto listener = std::make_shared<Listener>();
        listener->card = card;
        listener->id = &id;
        listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        sockaddr_un name;
        socklen_t length = name_of(name, kind, card->address, port);
        int code = bind(listener->fd, reinterpret_cast<sockaddr *>(&name), length) ? errno : 0;
        made.push_back(listener);
        if (!code) continue;
        for (auto &each : made) close(each->fd);
        return code;
    }
    id.listeners = made;
    return 0;
}

int bind_id(Id &id, const sockaddr *address) {
    if (id.state != Id::IDLE) return EINVAL;
    if (address->sa_family != AF_INET) return EADDRNOTAVAIL;
    sockaddr_in to;
    memcpy(&to, address, sizeof to);
    std::vector<Card *> cards;
    Card *card = card_at(to.sin_addr.s_addr);
    if (card && !card->is_dead) cards.push_back(card);
    else if (to.sin_addr.s_addr != INADDR_ANY) return is_own(to) ? ENODEV : EADDRNOTAVAIL;
    else
        for (auto &each : world().cards)
            if (!each->is_dead) cards.push_back(each.get());
    in_port_t port = to.sin_port ? to.sin_port : some_port();
    int code = take_port(id, cards, "rdma", port);
    for (int turn = 0; code == EADDRINUSE && !to.sin_port && turn < 1000; turn++)
        code = take_port(id, cards, "rdma", port = some_port());
    if (code) return code;
    to.sin_port = port;
    id.route.addr.src_sin = to;
    id.state = Id::BOUND;
    if (!card) return 0;
    settle(id, *card);
    id.verbs = card->context;
    id.port_num = 1;
    return 0;
}

int resolve(Id &id, const sockaddr *source, const sockaddr *target) {
    if (source && id.state == Id::IDLE)
        if (int code = bind_id(id, source)) return code;
    if (id.state != Id::IDLE && id.state != Id::BOUND) return EINVAL;
    if (target->sa_family != AF_INET) return EAFNOSUPPORT;
    sockaddr_in to;
    memcpy(&to, target, sizeof to);
    Card *card = id.card ? id.card : card_at(to.sin_addr.s_addr);
    bool is_near = ntohl(to.sin_addr.s_addr) >> 24 == 127;
    for (auto &each : world().cards)
        if (!card && is_near && !each->is_dead) card = each.get();
    if (!card || !is_near || card->is_dead) {
        tell(id, RDMA_CM_EVENT_ADDR_ERROR, -ENODEV);
        return 0;
    }
    if (!id.card) settle(id, *card);
    if (id.state == Id::IDLE) {
        id.route.addr.src_sin = to;
        id.route.addr.src_sin.sin_addr.s_addr = card->address;
        id.route.addr.src_sin.sin_port = some_port();
    }
    id.route.addr.dst_sin = to;
    id.state = Id::ADDRESS;
    tell(id, RDMA_CM_EVENT_ADDR_RESOLVED);
    return 0;
}

/// What one end says to the other; false if it may not.
bool greet(const Id &id, const rdma_conn_param *param, size_t room, Greeting &made) {
    rdma_conn_param usual{};
    usual.responder_resources = usual.initiator_depth = RDMA_MAX_RESP_RES;
    usual.retry_count = usual.rnr_retry_count = 7;
    if (!param) param = &usual;
    made = {};
    auto fits = [](uint8_t reads) { return reads <= READS_MAX || reads == RDMA_MAX_RESP_RES; };
    if (param->private_data_len > room) return false;
    if (!fits(param->responder_resources) || !fits(param->initiator_depth)) return false;
    made.from = id.route.addr.src_sin;
    made.from.sin_addr.s_addr = id.card->address;
    made.qp_num = id.qp->qp_num;
    made.responder_resources = uint8_t(std::min<int>(param->responder_resources, READS_MAX));
    made.initiator_depth = uint8_t(std::min<int>(param->initiator_depth, READS_MAX));
    made.flow_control = param->flow_control;
    made.retry_count = param->retry_count;
    made.rnr_retry = param->rnr_retry_count;
    made.bytes = param->private_data_len;
    if (made.bytes) memcpy(made.data, param->private_data, made.bytes);
    return true;
}

/// Private data have the room that their message has; iWARP says how many there are.
constexpr size_t ASK_ROOM = 56, ANSWER_ROOM = 196, REJECT_ROOM = 148;
size_t room_of(size_t room) { return is_iwarp() ? 255 : room; }

void show_greeting(Event &event, const Greeting &greeting, size_t room) {
    rdma_conn_param &conn = event.param.conn;
    memcpy(event.data, greeting.data, sizeof event.data);
    conn.private_data_len = is_iwarp() ? greeting.bytes : uint8_t(room);
    conn.private_data = conn.private_data_len ? event.data : nullptr;
    // What the peer may begin is what this end answers.
    conn.responder_resources = greeting.initiator_depth;
    conn.initiator_depth = greeting.responder_resources;
    conn.flow_control = greeting.flow_control;
    conn.retry_count = greeting.retry_count;
    conn.rnr_retry_count = greeting.rnr_retry;
    conn.qp_num = greeting.qp_num;
}

Id *make_id(EventChannel *channel, void *context, rdma_port_space space) {
    Id *id = new Id{};
    id->channel = channel;
    id->context = context;
    id->ps = space;
    id->qp_type = IBV_QPT_RC;
    return id;
}

/// The id of a connection that a peer asks for.
Id *make_asked(const Told &told) {
    Wire &wire = *told.wire;
    Id *id = make_id(static_cast<EventChannel *>(told.id->channel), told.id->context, told.id->ps);
    settle(*id, *wire.card);
    id->verbs = wire.card->context;
    id->port_num = 1;
    id->route.addr.src_sin = told.id->route.addr.src_sin;
    id->route.addr.src_sin.sin_addr.s_addr = wire.card->address;
    id->route.addr.dst_sin = told.greeting.from;
    id->state = Id::REQUESTED;
    id->wire = told.wire;
    wire.id = id;
    wire.listener = nullptr;
    if (wire.fd < 0 && !wire.has_told) peer_left(wire);
    return id;
}

/// What taking an event does beside.
void act(Event &event, const Told &told) {
    Id &id = *told.id;
    switch (told.type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        id.verbs = id.card->context;
        id.port_num = 1;
        return;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
        event.listen_id = event.id;
        event.id = make_asked(told);
        return show_greeting(event, told.greeting, ASK_ROOM);
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
        event.event = RDMA_CM_EVENT_ESTABLISHED;
        show_greeting(event, told.greeting, ANSWER_ROOM);
        if (id.state == Id::RESPONDED) id.state = Id::CONNECTED;
        if (!id.wire->qp) return;
        join(*id.wire, id.wire->greeting, told.greeting);
        put(*id.wire, Kind::READY);
        flush(*id.wire);
        return release(*id.wire);
    case RDMA_CM_EVENT_REJECTED:
    case RDMA_CM_EVENT_UNREACHABLE:
        if (told.has_greeting) show_greeting(event, told.greeting, REJECT_ROOM);
        if (id.qp) end_qp(*static_cast<Qp *>(id.qp), IBV_WC_SUCCESS);
        return;
    default: return;
    }
}

/// Says no to who asks, and to those in the queue whom nobody will hear.
void turn_away(Wire &wire, const Greeting &greeting) {
    put(wire, Kind::REJECT, &greeting);
    wire.has_told = true;
    abandon(wire);
}

void forget_events(Id &id) {
    auto &events = static_cast<EventChannel *>(id.channel)->events;
    std::deque<Told> kept, dropped;
    for (Told &told : events) (told.id == &id ? dropped : kept).push_back(std::move(told));
    events.swap(kept);
    for (Told &told : dropped)
        if (told.type == RDMA_CM_EVENT_CONNECT_REQUEST) turn_away(*told.wire, Greeting{});
    // Wires of which nothing has been said yet.
    for (auto &listener : id.listeners)
        for (auto entry = listener->card->wires.begin(); entry != listener->card->wires.end();) {
            auto wire = (entry++)->second;
            if (wire->listener == &id) turn_away(*wire, Greeting{});
        }
}

void wait_for_acknowledgements(Id &id, Hold &hold, const char *what) {
    auto all = [&] { return id.taken == id.acknowledged; };
    auto &condition = world().acknowledged;
    if (condition.wait_for(hold.held, std::chrono::seconds(5), all)) return;
    say("%s waits for events that were taken and not acknowledged", what);
    condition.wait(hold.held, all);
}

} // namespace

extern "C" {

// Events ------------------------------------------------------------------------------------------

rdma_event_channel *rdma_create_event_channel(void) {
    if (world().cards.empty()) return none<rdma_event_channel>(ENODEV);
    EventChannel *channel = new EventChannel{};
    channel->fd = channel->tokens.fd;
    return channel;
}

void rdma_destroy_event_channel(rdma_event_channel *channel) {
    delete static_cast<EventChannel *>(channel);
}

int rdma_get_cm_event(rdma_event_channel *channel, rdma_cm_event **event) {
    EventChannel &from = *static_cast<EventChannel *>(channel);
    for (;;) {
        if (!from.tokens.take()) return -1;
        Hold hold;
        if (from.events.empty()) continue;
        Told told = std::move(from.events.front());
        from.events.pop_front();
        Event *made = new Event{};
        made->id = told.id;
        made->event = told.type;
        made->status = told.status;
        made->counted = told.id;
        told.id->taken++;
        act(*made, told);
        *event = made;
        return 0;
    }
}

int rdma_ack_cm_event(rdma_cm_event *event) {
    if (!event) return fail(EINVAL);
    Hold hold;
    static_cast<Event *>(event)->counted->acknowledged++;
    world().acknowledged.notify_all();
    delete static_cast<Event *>(event);
    return 0;
}

const char *rdma_event_str(rdma_cm_event_type event) {
    switch (event) {
        NAME(RDMA_CM_EVENT_ADDR_RESOLVED);
        NAME(RDMA_CM_EVENT_ADDR_ERROR);
        NAME(RDMA_CM_EVENT_ROUTE_RESOLVED);
        NAME(RDMA_CM_EVENT_ROUTE_ERROR);
        NAME(RDMA_CM_EVENT_CONNECT_REQUEST);
        NAME(RDMA_CM_EVENT_CONNECT_RESPONSE);
        NAME(RDMA_CM_EVENT_CONNECT_ERROR);
        NAME(RDMA_CM_EVENT_UNREACHABLE);
        NAME(RDMA_CM_EVENT_REJECTED);
        NAME(RDMA_CM_EVENT_ESTABLISHED);
        NAME(RDMA_CM_EVENT_DISCONNECTED);
        NAME(RDMA_CM_EVENT_DEVICE_REMOVAL);
        NAME(RDMA_CM_EVENT_ADDR_CHANGE);
        NAME(RDMA_CM_EVENT_TIMEWAIT_EXIT);
    default: return "RDMA_CM_EVENT of another kind";
    }
}

// Ids ---------------------------------------------------------------------------------------------

int rdma_create_id(rdma_event_channel *channel, rdma_cm_id **id, void *context,
                   rdma_port_space space) {
    if (world().cards.empty()) return fail(ENODEV);
    if (!channel || (space != RDMA_PS_TCP && space != RDMA_PS_IB)) return fail(EINVAL);
    *id = make_id(static_cast<EventChannel *>(channel), context, space);
    return 0;
}

int rdma_destroy_id(rdma_cm_id *destroyed) {
    Id *id = static_cast<Id *>(destroyed);
    Hold hold;
    // Who has come this far is told that nobody is there.
    for (auto &listener : id->listeners)
        if (id->state == Id::LISTENS && listener->fd >= 0) accept_wires(*listener);
    forget_events(*id);
    if (auto wire = id->wire) {
        bool asks = id->state == Id::REQUESTED;
        leave(*wire);
        forget_events(*id);
        if (asks) turn_away(*wire, Greeting{});
        else abandon(*wire);
    }
    for (auto &listener : id->listeners) {
        if (listener->fd >= 0) close(listener->fd);
        listener->card->listeners.erase(listener->number);
    }
    if (id->card) id->card->ids.erase(id);
    wait_for_acknowledgements(*id, hold, "rdma_destroy_id");
    delete id;
    return 0;
}

int rdma_migrate_id(rdma_cm_id *moved, rdma_event_channel *channel) {
    Id &id = *static_cast<Id *>(moved);
    if (!channel) return fail(EINVAL);
    Hold hold;
    auto &from = static_cast<EventChannel *>(id.channel)->events;
    EventChannel &to = *static_cast<EventChannel *>(channel);
    std::deque<Told> kept;
    for (Told &told : from) {
        if (told.id == &id) to.tokens.give();
        (told.id == &id ? to.events : kept).push_back(std::move(told));
    }
    from.swap(kept);
    id.channel = &to;
    wait_for_acknowledgements(id, hold, "rdma_migrate_id");
    return 0;
}

int rdma_set_option(rdma_cm_id *, int level, int option, void *value, size_t bytes) {
    if (level != RDMA_OPTION_ID) return fail(ENOSYS);
    switch (option) {
    case RDMA_OPTION_ID_TOS:
    case RDMA_OPTION_ID_ACK_TIMEOUT: return value && bytes == 1 ? 0 : fail(EINVAL);
    case RDMA_OPTION_ID_REUSEADDR:
    case RDMA_OPTION_ID_AFONLY: return value && bytes == sizeof(int) ? 0 : fail(EINVAL);
    default: return fail(ENOSYS);
    }
}

// Connections -------------------------------------------------------------------------------------

int rdma_bind_addr(rdma_cm_id *id, sockaddr *address) {
    Hold hold;
    int code = bind_id(*static_cast<Id *>(id), address);
    return code ? fail(code) : 0;
}

int rdma_listen(rdma_cm_id *listening, int) {
    Id &id = *static_cast<Id *>(listening);
    Hold hold;
    if (id.state == Id::IDLE) {
        sockaddr_in any{};
        any.sin_family = AF_INET;
        if (int code = bind_id(id, reinterpret_cast<sockaddr *>(&any))) return fail(code);
    }
    if (id.state != Id::BOUND) return fail(EINVAL);
    for (auto &listener : id.listeners) {
        Card &card = *listener->card;
        start(card);
        listener->number = world().numbers++;
        if (listen(listener->fd, 1024)) return -1;
        card.listeners[listener->number] = listener;
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.u64 = listener->number;
        epoll_ctl(card.epoll, EPOLL_CTL_ADD, listener->fd, &event);
    }
    id.state = Id::LISTENS;
    return 0;
}

int rdma_resolve_addr(rdma_cm_id *id, sockaddr *source, sockaddr *target, int) {
    Hold hold;
    int code = resolve(*static_cast<Id *>(id), source, target);
    return code ? fail(code) : 0;
}

int rdma_resolve_route(rdma_cm_id *resolved, int) {
    Id &id = *static_cast<Id *>(resolved);
    Hold hold;
    if (id.state != Id::ADDRESS || !id.verbs) return fail(EINVAL);
    if (id.card->is_dead) {
        tell(id, RDMA_CM_EVENT_ROUTE_ERROR, -ENODEV);
        return 0;
    }
    id.state = Id::ROUTE;
    tell(id, RDMA_CM_EVENT_ROUTE_RESOLVED);
    return 0;
}

int rdma_create_qp(rdma_cm_id *owner, ibv_pd *pd, ibv_qp_init_attr *init) {
    Id &id = *static_cast<Id *>(owner);
    Hold hold;
    if (id.qp || !id.verbs) return fail(EINVAL);
    if (!pd) {
        if (!id.card->pd) id.card->pd = static_cast<Pd *>(ibv_alloc_pd(id.verbs));
        pd = id.card->pd;
    }
    if (pd->context != id.verbs) return fail(EINVAL);
    Qp *qp = make_qp(static_cast<Pd *>(pd), init);
    if (!qp) return -1;
    qp->state = IBV_QPS_INIT;
    id.qp = qp;
    id.pd = pd;
    id.send_cq = init->send_cq;
    id.recv_cq = init->recv_cq;
    return 0;
}

void rdma_destroy_qp(rdma_cm_id *id) {
    destroy_qp(static_cast<Qp *>(id->qp));
    id->qp = nullptr;
}

int rdma_connect(rdma_cm_id *connected, rdma_conn_param *param) {
    Id &id = *static_cast<Id *>(connected);
    Hold hold;
    Greeting greeting;
    if (id.state != Id::ROUTE || !id.qp || id.qp->state != IBV_QPS_INIT) return fail(EINVAL);
    if (!greet(id, param, room_of(ASK_ROOM), greeting)) return fail(EINVAL);
    if (id.card->is_dead) return fail(ENODEV);
    begin_connection(id, greeting);
    return 0;
}

int rdma_accept(rdma_cm_id *accepted, rdma_conn_param *param) {
    Id &id = *static_cast<Id *>(accepted);
    Hold hold;
    Greeting greeting;
    if (id.state != Id::REQUESTED || !id.qp || id.qp->state != IBV_QPS_INIT) return fail(EINVAL);
    if (!greet(id, param, room_of(ANSWER_ROOM), greeting)) return fail(EINVAL);
    Wire &wire = *id.wire;
    if (wire.fd < 0 || wire.is_closing) return fail(EINVAL);
    Qp *qp = static_cast<Qp *>(id.qp);
    wire.qp = qp;
    qp->wire = id.wire;
    // It retries as the one who asks has said.
    greeting.retry_count = wire.greeting.retry_count;
    join(wire, greeting, wire.greeting);
    id.state = Id::ACCEPTED;
    put(wire, Kind::ACCEPT, &greeting);
    flush(wire);
    return 0;
}

int rdma_reject(rdma_cm_id *rejected, const void *data, uint8_t bytes) {
    Id &id = *static_cast<Id *>(rejected);
    Hold hold;
    if (id.state != Id::REQUESTED || bytes > room_of(REJECT_ROOM)) return fail(EINVAL);
    Greeting greeting{};
    greeting.bytes = bytes;
    if (bytes) memcpy(greeting.data, data, bytes);
    id.state = Id::ENDED;
    turn_away(*id.wire, greeting);
    return 0;
}

int rdma_disconnect(rdma_cm_id *disconnected) {
    Id &id = *static_cast<Id *>(disconnected);
    Hold hold;
    if (!id.wire) return fail(EINVAL);
    if (id.qp) end_qp(*static_cast<Qp *>(id.qp), IBV_WC_SUCCESS);
    return leave(*id.wire) ? 0 : fail(EINVAL);
}

} // extern "C"
