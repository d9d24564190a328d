// Registered memory: keys, and what is copied from and to it.
#pragma once

namespace {

World::World() : keys(std::random_device{}() & 0x0fffff00) {
    if (number("STANDIN_RDMA_NONE", 0)) return;
    long count = std::clamp(number("STANDIN_RDMA_DEVICES", 1), 0L, 200L);
    for (long at = 0; at < count; at++) {
        auto card = std::make_unique<Card>();
        card->number = int(at);
        card->address = htonl(0x7f000001 + uint32_t(at));
        card->node_type = is_iwarp() ? IBV_NODE_RNIC : IBV_NODE_CA;
        card->transport_type = is_iwarp() ? IBV_TRANSPORT_IWARP : IBV_TRANSPORT_IB;
        snprintf(card->name, sizeof card->name, "standin%ld", at);
        snprintf(card->dev_name, sizeof card->dev_name, "uverbs%ld", at);
        card->slow = number_of_device("STANDIN_RDMA_SLOW", int(at));
        card->late = number("STANDIN_RDMA_LATE", 50);
        card->fails = number_of_device("STANDIN_RDMA_FAIL", int(at));
        cards.push_back(std::move(card));
    }
}

/// Whether all pages are there, and may be written. Touches them, as pinning does.
bool is_mapped(void *at, size_t bytes, bool writes) {
    uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    uintptr_t begin = uintptr_t(at) & ~(page - 1);
    uintptr_t end = (uintptr_t(at) + bytes + page - 1) & ~(page - 1);
    constexpr int POPULATE_READ = 22, POPULATE_WRITE = 23; // MADV_, of Linux 5.14
    static bool is_known = [&] {
        uintptr_t here = uintptr_t(&page) & ~(page - 1);
        return madvise(reinterpret_cast<void *>(here), page, POPULATE_WRITE) == 0;
    }();
    int advice = writes ? POPULATE_WRITE : POPULATE_READ;
    if (is_known) return madvise(reinterpret_cast<void *>(begin), end - begin, advice) == 0;
    std::vector<unsigned char> there((end - begin) / page);
    return mincore(reinterpret_cast<void *>(begin), end - begin, there.data()) == 0;
}

Mr *register_memory(ibv_pd *ibv_pd, void *addr, char *host, size_t bytes, uint64_t iova,
                    unsigned access) {
    Pd *pd = static_cast<Pd *>(ibv_pd);
    Hold hold;
    World &all = world();
    if (pd->card->is_dead) return none<Mr>(EIO);
    bool remote = access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC);
    bool local = access & IBV_ACCESS_LOCAL_WRITE;
    if (!bytes || (remote && !local)) return none<Mr>(EINVAL);
    if (access & (IBV_ACCESS_ON_DEMAND | IBV_ACCESS_MW_BIND)) return none<Mr>(EOPNOTSUPP);
    long locked = number("STANDIN_RDMA_LOCKED", -1);
    if (locked >= 0 && all.registered + bytes > uint64_t(locked)) return none<Mr>(ENOMEM);
    if (!is_mapped(host, bytes, local)) return none<Mr>(EFAULT);
    Mr *mr = new Mr{};
    mr->context = pd->context;
    mr->pd = pd;
    mr->addr = addr;
    mr->length = bytes;
    // A key is used once, and none of them does for the other end.
    mr->lkey = all.keys += 0x100;
    mr->rkey = mr->lkey + 0x11;
    mr->handle = mr->lkey >> 8;
    mr->card = pd->card;
    mr->iova = iova;
    mr->host = host;
    mr->access = int(access);
    all.local[mr->lkey] = mr;
    all.remote[mr->rkey] = mr;
    all.registered += bytes;
    pd->users++;
    return mr;
}

void forget_memory(Mr *mr) {
    Hold hold;
    World &all = world();
    all.local.erase(mr->lkey);
    all.remote.erase(mr->rkey);
    all.registered -= mr->length;
    static_cast<Pd *>(mr->pd)->users--;
    if (mr->mapped) munmap(mr->mapped, mr->mapped_bytes);
    delete mr;
}

/// Where memory is, if the key allows all of it, and all that is to be done with it.
char *allowed(const std::map<uint32_t, Mr *> &keys, ibv_pd *pd, uint32_t key, uint64_t address,
              uint64_t bytes, int access) {
    auto found = keys.find(key);
    if (found == keys.end()) return nullptr;
    const Mr &mr = *found->second;
    if (mr.pd != pd || (mr.access & access) != access) return nullptr;
    if (address < mr.iova || bytes > mr.length || address - mr.iova > mr.length - bytes)
        return nullptr;
    return mr.host + (address - mr.iova);
}

bool all_allowed(ibv_pd *pd, const std::vector<ibv_sge> &sges, int access) {
    for (const ibv_sge &sge : sges)
        if (sge.length &&
            !allowed(world().local, pd, sge.lkey, sge.addr, sge.length, access))
            return false;
    return true;
}

uint64_t bytes_of(const std::vector<ibv_sge> &sges) {
    uint64_t sum = 0;
    for (const ibv_sge &sge : sges) sum += sge.length;
    return sum;
}

/// Whole words, in order: who looks at memory meanwhile sees no half of a number. Programs do look.
void place(char *to, const char *from, size_t bytes) {
    auto byte = [&] {
        __atomic_store_n(to++, *from++, __ATOMIC_RELAXED);
        bytes--;
    };
    while (bytes && uintptr_t(to) % 8) byte();
    for (; bytes >= 8; to += 8, from += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, from, 8);
        __atomic_store_n(reinterpret_cast<uint64_t *>(to), word, __ATOMIC_RELEASE);
    }
    while (bytes) byte();
    std::atomic_thread_fence(std::memory_order_release);
}

/// Calls `part` for each piece of the `bytes` from `offset` on; false if a key forbids one.
template <class Part>
bool pieces(ibv_pd *pd, const std::vector<ibv_sge> &sges, uint64_t offset, uint64_t bytes,
            int access, Part part) {
    for (const ibv_sge &sge : sges) {
        if (!bytes) break;
        if (offset >= sge.length) {
            offset -= sge.length;
            continue;
        }
        uint64_t length = std::min<uint64_t>(bytes, sge.length - offset);
        char *at = allowed(world().local, pd, sge.lkey, sge.addr, sge.length, access);
        if (!at) return false;
        part(at + offset, length);
        offset = 0;
        bytes -= length;
    }
    return true;
}

} // namespace
