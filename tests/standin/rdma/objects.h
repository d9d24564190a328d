// What there is: cards, memory, queues, connections, and one lock for nearly all of it.
//
// Locks, in the order in which they are taken: the world's; a queue pair's, for what is posted and
// its state; a completion queue's; a completion channel's. Posting and polling do without the
// world's. Who holds the world's lock may do what the card does.
#pragma once

namespace {

struct Card;
struct Cq;
struct Id;
struct Qp;
struct Wire;

constexpr size_t PACKET = 64 << 10;
constexpr uint64_t MESSAGE_MAX = 1 << 30;
constexpr int SGE_MAX = 16;
constexpr int QUEUE_MAX = 16384;
constexpr int READS_MAX = 16;

// Memory ------------------------------------------------------------------------------------------

struct Pd : ibv_pd {
    Card *card;
    int users = 0;
};

struct Mr : ibv_mr {
    Card *card;
    /// Where peers and requests say that it begins, and where it does.
    uint64_t iova;
    char *host;
    int access;
    /// Of memory that came as a file descriptor: what to unmap.
    void *mapped = nullptr;
    size_t mapped_bytes = 0;
};

// Completions -------------------------------------------------------------------------------------

struct Channel : ibv_comp_channel {
    Tokens tokens;
    std::mutex lock;
    std::deque<Cq *> events;
};

struct Completion {
    ibv_wc wc;
    Qp *qp;
    /// Slots of the queue pair that are free once this is polled.
    uint32_t sends, receives;
};

struct Cq : ibv_cq {
    Card *card;
    std::mutex lock;
    std::deque<Completion> found;
    std::atomic<int> count{0};
    enum { NOT, SOLICITED, ANY } armed = NOT;
    std::atomic<bool> lost{false};
    /// Events that have been taken, under the channel's lock; and asynchronous ones.
    uint32_t taken = 0, async_taken = 0;
    std::atomic<int> users{0};
};

// Requests ----------------------------------------------------------------------------------------

struct Request {
    uint64_t wr_id, remote, length;
    ibv_wr_opcode opcode;
    unsigned flags;
    uint32_t imm, rkey;
    bool is_signalled;
    std::vector<ibv_sge> sges;
    std::string inlined;
    /// Which one it is on its device, in this process.
    long ordinal;
    bool is_begun = false;
    Time ready{};
    /// Of a read: what has come.
    uint64_t read = 0;
    /// What it fails with when those before it have completed.
    ibv_wc_status failure = IBV_WC_SUCCESS;
};

struct Receive {
    uint64_t wr_id;
    std::vector<ibv_sge> sges;
};

struct Qp : ibv_qp {
    Card *card;
    ibv_qp_init_attr init;
    ibv_qp_attr attr{};
    std::shared_ptr<Wire> wire;
    std::atomic<uint32_t> sends_used{0}, receives_used{0};
    std::atomic<bool> is_rung{false};
    /// A message waits for a receive.
    std::atomic<bool> wants_receive{false};

    std::mutex lock;
    std::deque<Request> sends;
    std::deque<Receive> receives;
    /// Completed without a completion since the last that had one.
    uint32_t silent = 0;

    // The card's, under the world's lock.
    /// Number of the first of `sends`, of the one that is on its way out, and how far that is.
    uint64_t first = 0, next = 0, offset = 0;
    int reads = 0;
    bool is_paused = false;
    uint32_t epoch = 0;
    /// The receive that a message is filling.
    std::unique_ptr<Receive> current;
    /// Asynchronous events that have been taken.
    uint32_t taken = 0;
};

struct AsyncEvent {
    ibv_async_event event;
    Qp *qp;
    Cq *cq;
};

struct Context : ibv_context {
    Card *card;
    Tokens tokens;
    std::deque<AsyncEvent> events;
};

// Connections -------------------------------------------------------------------------------------

enum class Kind : uint8_t {
    // Of connections.
    CONNECT, /// asks for one; with a Greeting
    ACCEPT,  /// with a Greeting
    REJECT,  /// with a Greeting
    READY,   /// the answer to ACCEPT
    LEAVE,   /// ends it
    LEFT,    /// the answer to LEAVE
    GONE,    /// the queue pair takes nothing any more
    DEAD,    /// the card says nothing any more
    // Of data.
    REQUEST,
    ACK, /// of all requests before `message`
    NAK, /// of `message`, and an ACK of those before it
    RNR, /// there is no receive for `message`: begin there again, when GO has come
    GO,
    DATA, /// what a read gives
};

struct Frame {
    Kind kind;
    uint8_t opcode, status;
    bool is_first, is_last, is_solicited;
    uint32_t bytes; /// that follow
    uint32_t epoch, rkey, imm, unused;
    uint64_t message, address, total;
};

struct Greeting {
    sockaddr_in from;
    uint32_t qp_num;
    uint8_t responder_resources, initiator_depth, flow_control, retry_count, rnr_retry;
    uint8_t bytes;
    char data[256];
};

/// What the responder says next, in order.
struct Answer {
    Frame frame;
    /// Of a read: how much of it has been sent.
    uint64_t sent;
};

struct Wire : std::enable_shared_from_this<Wire> {
    uint64_t number;
    Card *card;
    int fd = -1;
    Id *id = nullptr;
    Qp *qp = nullptr;
    /// Who listens, until there is an id.
    Id *listener = nullptr;

    std::string out;
    size_t out_at = 0;
    std::vector<char> in;
    size_t in_at = 0, in_end = 0;
    bool wants_write = false;
    /// What comes waits until the queue pair is ready to receive.
    bool is_held = false;
    /// Is closed once all has been written.
    bool is_closing = false;
    bool is_connecting = false;
    bool has_left = false, peer_has_left = false, has_told = false;
    bool said_gone = false;
    /// The peer answers no more.
    bool is_gone = false;
    bool peer_is_dead = false;

    std::deque<Answer> answers;
    bool answers_next = false;
    uint32_t epoch = 0;
    uint64_t message = 0, placed = 0;
    Frame inbound{};
    int rnr_retry = 7, depth = 0, resources = 0;
    Time rnr_end{}, leave_end{}, wait_end{};

    Greeting greeting{};
};

struct Listener {
    uint64_t number;
    Card *card;
    int fd;
    Id *id;
};

struct Told {
    Id *id;
    rdma_cm_event_type type;
    int status;
    std::shared_ptr<Wire> wire;
    bool has_greeting;
    Greeting greeting;
};

struct EventChannel : rdma_event_channel {
    Tokens tokens;
    std::deque<Told> events;
};

struct Event : rdma_cm_event {
    Id *counted;
    char data[256];
};

struct Id : rdma_cm_id {
    enum {
        IDLE,
        BOUND,
        ADDRESS,
        ROUTE,
        CONNECTING,
        RESPONDED,
        REQUESTED,
        ACCEPTED,
        CONNECTED,
        ENDED,
        LISTENS
    } state = IDLE;
    Card *card = nullptr;
    std::shared_ptr<Wire> wire;
    /// One for each device.
    std::vector<std::shared_ptr<Listener>> listeners;
    uint32_t taken = 0, acknowledged = 0;
};

// Cards -------------------------------------------------------------------------------------------

struct Card : ibv_device {
    int number;
    in_addr_t address; /// in network byte order
    int epoll = -1, bell = -1;
    bool has_started = false;
    std::atomic<bool> is_dead{false};
    std::atomic<long> posted{0};
    long slow, late, fails;
    Time free{};
    /// The queue pair over whose request it dies, and the packets that it still sends.
    Qp *dying = nullptr;
    uint64_t last_packets = 0;

    std::mutex lock;
    std::vector<Qp *> rung;
    std::vector<Cq *> lost;
    bool is_asleep = false;

    std::map<uint64_t, std::shared_ptr<Wire>> wires;
    std::map<uint64_t, std::shared_ptr<Listener>> listeners;
    std::multimap<Time, std::weak_ptr<Wire>> timers;
    std::set<Context *> contexts;
    std::set<Qp *> qps;
    std::set<Id *> ids;
    /// That of ids, and their protection domain where a program brings none.
    Context *context = nullptr;
    Pd *pd = nullptr;
};

struct World {
    std::mutex lock;
    std::atomic<int> waiting{0};
    std::condition_variable acknowledged;
    std::vector<std::unique_ptr<Card>> cards;
    std::map<uint32_t, Mr *> local, remote;
    uint64_t registered = 0;
    uint64_t numbers = 1;
    uint32_t keys;

    World();
};

/// Never ends: cards may run until the process has.
World &world() {
    static World *made = new World;
    return *made;
}

/// The world's lock. Cards let others go first.
struct Hold {
    std::unique_lock<std::mutex> held;
    Hold() {
        ++world().waiting;
        held = std::unique_lock<std::mutex>(world().lock);
        --world().waiting;
    }
};

} // namespace
