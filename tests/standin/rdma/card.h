// The card: a thread for each device, and its death.
#pragma once

namespace {

/// From now on nothing on this device works. What is on the wire still arrives.
void die(Card &card) {
    card.is_dead = true;
    card.dying = nullptr;
    for (Context *context : card.contexts)
        raise(context, IBV_EVENT_DEVICE_FATAL, nullptr, nullptr);
    std::vector<std::shared_ptr<Wire>> wires;
    for (auto &entry : card.wires) wires.push_back(entry.second);
    for (auto &wire : wires) {
        // What it has not yet said, it does not say.
        wire->answers.clear();
        wire->said_gone = true;
        wire->is_gone = true;
        put(*wire, Kind::DEAD);
    }
    for (Qp *qp : card.qps) {
        bool waits;
        {
            std::lock_guard<std::mutex> lock(qp->lock);
            waits = !qp->sends.empty();
        }
        end_qp(*qp, waits ? IBV_WC_RETRY_EXC_ERR : IBV_WC_SUCCESS);
    }
    for (Id *id : card.ids) tell(*id, RDMA_CM_EVENT_DEVICE_REMOVAL);
    for (auto &entry : card.listeners) {
        close(entry.second->fd);
        entry.second->fd = -1;
    }
    card.listeners.clear();
    for (auto &wire : wires) {
        wire->has_told = true;
        wire->is_closing = true;
        if (wire->is_connecting) close_wire(*wire);
        else flush(*wire);
    }
}

void serve(Card &card, uint64_t number, uint32_t what) {
    auto listener = card.listeners.find(number);
    if (listener != card.listeners.end()) return accept_wires(*listener->second);
    auto found = card.wires.find(number);
    if (found == card.wires.end()) return;
    auto wire = found->second;
    if (wire->is_closing) {
        // What comes means nothing to anyone.
        ssize_t got = recv(wire->fd, wire->in.data(), wire->in.size(), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) close_wire(*wire);
        else flush(*wire);
        return;
    }
    if (what & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_wire(*wire);
    else pump(*wire);
}

/// What to do until, and whether there is anything at once.
timespec until(const Card &card, bool is_busy) {
    if (is_busy) return {0, 0};
    if (card.timers.empty()) return {60, 0};
    auto left = card.timers.begin()->first - Clock::now();
    auto nanos = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    nanos = std::max<decltype(nanos)>(nanos, 0);
    return {time_t(nanos / 1000000000), long(nanos % 1000000000)};
}

void work(Card &card) {
    std::vector<Qp *> rung;
    std::vector<Cq *> lost;
    {
        std::lock_guard<std::mutex> lock(card.lock);
        rung.swap(card.rung);
        lost.swap(card.lost);
    }
    for (Cq *cq : lost) end_cq(*cq);
    for (Qp *qp : rung) {
        qp->is_rung = false;
        if (qp->wire) pump(*qp->wire);
        else fail_requests(*qp);
    }
    epoll_event events[64];
    int count = epoll_wait(card.epoll, events, 64, 0);
    for (int at = 0; at < count; at++) {
        uint64_t tokens;
        if (events[at].data.u64) serve(card, events[at].data.u64, events[at].events);
        else (void)!read(card.bell, &tokens, sizeof tokens);
    }
    Time now = Clock::now();
    while (!card.timers.empty() && card.timers.begin()->first <= now) {
        auto wire = card.timers.begin()->second.lock();
        card.timers.erase(card.timers.begin());
        if (wire) handle_timer(*wire);
    }
}

void run(Card &card) {
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        timespec wait;
        {
            // Who has waited for the lock goes first.
            while (world().waiting) std::this_thread::yield();
            std::lock_guard<std::mutex> hold(world().lock);
            work(card);
            std::lock_guard<std::mutex> lock(card.lock);
            bool is_busy = !card.rung.empty() || !card.lost.empty();
            card.is_asleep = !is_busy;
            wait = until(card, is_busy);
        }
        pollfd ready{card.epoll, POLLIN, 0};
        ppoll(&ready, 1, &wait, nullptr);
        std::lock_guard<std::mutex> lock(card.lock);
        card.is_asleep = false;
    }
}

/// Under the world's lock.
void start(Card &card) {
    if (card.has_started) return;
    card.has_started = true;
    card.epoll = epoll_create1(EPOLL_CLOEXEC);
    card.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    epoll_ctl(card.epoll, EPOLL_CTL_ADD, card.bell, &event);
    // Signals are the program's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([&card] { run(card); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

} // namespace
