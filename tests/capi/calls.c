/* calls.c: every call of unisono.h on 1 to 4 ranks, with data whose result is known. */
#include <stddef.h>

#include "harness.h"

/* What programs are compiled against: a field that moves breaks them. */
#define LIES_AT(field, offset) \
    _Static_assert(offsetof(unisono_config_t, field) == (offset), #field " has moved")
LIES_AT(size, 0);
LIES_AT(timeout_ms, 8);
LIES_AT(init_timeout_ms, 16);
LIES_AT(deterministic, 24);
LIES_AT(progress_thread, 28);
LIES_AT(links, 32);
LIES_AT(interface, 40);
LIES_AT(name, 48);
_Static_assert(sizeof(unisono_config_t) >= 56, "a struct that only grows");
_Static_assert(sizeof(unisono_unique_id_t) == 128, "an id is 128 bytes");

#define N 3
#define MAX (RANKS_MAX * N)

/* What rank r sends: r * 100 + i. */
static void fill(int32_t *data, int rank, int count)
{
    for (int i = 0; i < count; i++)
        data[i] = rank * 100 + i;
}

static int32_t total(int world, int i)
{
    return 100 * (world * (world - 1) / 2) + world * i;
}

static void check_sum(const int32_t *data, int world, int from, int count)
{
    for (int i = 0; i < count; i++)
        EXPECT(data[i] == total(world, from + i));
}

static void check_blocks(const int32_t *data, int world)
{
    for (int r = 0; r < world; r++)
        for (int i = 0; i < N; i++)
            EXPECT(data[r * N + i] == r * 100 + i);
}

static void check_exchanged(const int32_t *data, int rank, int world)
{
    for (int r = 0; r < world; r++)
        for (int i = 0; i < N; i++)
            EXPECT(data[r * N + i] == r * 100 + rank * N + i);
}

/* Either the blocking call or the request, waited for. */
#define BOTH(blocking, posting)                                                                    \
    do {                                                                                           \
        if (post) {                                                                                \
            OK(posting);                                                                           \
            OK(unisono_wait(&request, -1));                                                        \
            EXPECT(request == NULL);                                                               \
        } else {                                                                                   \
            OK(blocking);                                                                          \
        }                                                                                          \
    } while (0)

static void equal_blocks(unisono_comm_t *c, int rank, int world, int post)
{
    unisono_request_t *request = NULL;
    int32_t in[MAX], out[MAX];
    int all = N * world, last = world - 1, type = UNISONO_I32, sum = UNISONO_SUM;
    uint64_t count = (uint64_t)all;
    fill(in, rank, all);
    BOTH(unisono_all_reduce(in, out, count, type, sum, c),
         unisono_iall_reduce(in, out, count, type, sum, c, &request));
    check_sum(out, world, 0, all);
    int32_t *at_last = rank == last ? out : NULL;
    memset(out, 0, sizeof out);
    BOTH(unisono_reduce(in, at_last, count, type, sum, last, c),
         unisono_ireduce(in, at_last, count, type, sum, last, c, &request));
    if (rank == last)
        check_sum(out, world, 0, all);
    fill(out, rank, N);
    BOTH(unisono_broadcast(rank == last ? out : NULL, out, N, type, last, c),
         unisono_ibroadcast(rank == last ? out : NULL, out, N, type, last, c, &request));
    EXPECT(out[0] == last * 100 && out[N - 1] == last * 100 + N - 1);
    BOTH(unisono_all_gather(in, out, N, type, c),
         unisono_iall_gather(in, out, N, type, c, &request));
    check_blocks(out, world);
    memset(out, 0, sizeof out);
    fill(out + rank * N, rank, N);
    BOTH(unisono_all_gather(out + rank * N, out, N, type, c),
         unisono_iall_gather(out + rank * N, out, N, type, c, &request));
    check_blocks(out, world);
    BOTH(unisono_reduce_scatter(in, out, N, type, sum, c),
         unisono_ireduce_scatter(in, out, N, type, sum, c, &request));
    check_sum(out, world, rank * N, N);
    BOTH(unisono_gather(in, at_last, N, type, last, c),
         unisono_igather(in, at_last, N, type, last, c, &request));
    if (rank == last)
        check_blocks(out, world);
    BOTH(unisono_scatter(rank == 0 ? in : NULL, out, N, type, 0, c),
         unisono_iscatter(rank == 0 ? in : NULL, out, N, type, 0, c, &request));
    EXPECT(out[0] == rank * N && out[N - 1] == rank * N + N - 1);
    BOTH(unisono_all_to_all(in, out, N, type, c),
         unisono_iall_to_all(in, out, N, type, c, &request));
    check_exchanged(out, rank, world);
    BOTH(unisono_barrier(c), unisono_ibarrier(c, &request));
}

/* Rank r has r elements: rank 0 none. */
static void ragged_blocks(unisono_comm_t *c, int rank, int world, int post)
{
    unisono_request_t *request = NULL;
    int32_t in[MAX], out[MAX];
    uint64_t counts[RANKS_MAX], places[RANKS_MAX], even[RANKS_MAX], own = (uint64_t)rank;
    int type = UNISONO_I32, root = world - 1;
    for (int r = 0, at = 0; r < world; at += r++) {
        counts[r] = (uint64_t)r;
        places[r] = (uint64_t)at;
        even[r] = N;
    }
    int packed = world * (world - 1) / 2, mine = rank * (rank - 1) / 2;
    fill(in, rank, MAX);
    BOTH(unisono_all_gather_v(in, out, counts, NULL, type, c),
         unisono_iall_gather_v(in, out, counts, NULL, type, c, &request));
    for (int r = 1; r < world; r++)
        EXPECT(out[places[r]] == r * 100 && out[places[r] + counts[r] - 1] == r * 100 + r - 1);
    BOTH(unisono_reduce_scatter_v(in, out, counts, type, UNISONO_SUM, c),
         unisono_ireduce_scatter_v(in, out, counts, type, UNISONO_SUM, c, &request));
    check_sum(out, world, mine, rank);
    const uint64_t *at_root = rank == root ? counts : NULL;
    const uint64_t *places_at_root = rank == root ? places : NULL;
    BOTH(unisono_gather_v(in, own, out, at_root, places_at_root, type, root, c),
         unisono_igather_v(in, own, out, at_root, places_at_root, type, root, c, &request));
    if (rank == root && packed > 0)
        EXPECT(out[packed - 1] == root * 100 + root - 1);
    BOTH(unisono_scatter_v(in, at_root, places_at_root, out, own, type, root, c),
         unisono_iscatter_v(in, at_root, places_at_root, out, own, type, root, c, &request));
    for (int i = 0; i < rank; i++)
        EXPECT(out[i] == root * 100 + mine + i);
    BOTH(unisono_all_to_all_v(in, even, NULL, out, even, NULL, type, c),
         unisono_iall_to_all_v(in, even, NULL, out, even, NULL, type, c, &request));
    check_exchanged(out, rank, world);
}

static void messages(unisono_comm_t *c, int rank, int world, int post)
{
    unisono_request_t *request = NULL, *requests[3] = {NULL, NULL, NULL};
    int32_t in[N], out[N] = {0};
    int next = (rank + 1) % world, before = (rank + world - 1) % world, type = UNISONO_I32;
    fill(in, rank, N);
    BOTH(unisono_send_recv(in, N, next, out, N, before, type, c),
         unisono_isend_recv(in, N, next, out, N, before, type, c, &request));
    EXPECT(out[0] == before * 100 && out[N - 1] == before * 100 + N - 1);
    memset(out, 0, sizeof out);
    OK(unisono_isend(in, N, type, next, c, &requests[0]));
    OK(unisono_irecv(out, N, type, before, c, &requests[2]));
    for (int i = 0; i < 2; i++) {
        size_t index = 99;
        OK(unisono_wait_any(requests, 3, -1, &index));
        EXPECT((index == 0 || index == 2) && requests[index] == NULL);
    }
    EXPECT(out[0] == before * 100);
    if (world > 1 && rank == 0)
        OK(unisono_send(in, N, type, 1, c));
    if (rank == 1) {
        OK(unisono_recv(out, N, type, 0, c));
        EXPECT(out[1] == 1);
    }
}

static void groups(unisono_comm_t *c, int rank, int world)
{
    unisono_request_t *request = NULL;
    int32_t a[N], b[N], out[N], back[N];
    int done = 0, next = (rank + 1) % world, before = (rank + world - 1) % world;
    fill(a, rank, N);
    fill(b, rank, N);
    OK(unisono_group_start(c));
    OK(unisono_all_reduce(a, a, N, UNISONO_I32, UNISONO_SUM, c));
    OK(unisono_send_recv(b, N, next, back, N, before, UNISONO_I32, c));
    OK(unisono_group_end(c));
    check_sum(a, world, 0, N);
    EXPECT(back[2] == before * 100 + 2);
    OK(unisono_group_start(c));
    OK(unisono_all_reduce(b, out, N, UNISONO_I32, UNISONO_MAX, c));
    OK(unisono_barrier(c));
    OK(unisono_igroup_end(c, &request));
    while (!done)
        OK(unisono_test(&request, &done));
    EXPECT(request == NULL && out[0] == (world - 1) * 100);
    done = 0;
    OK(unisono_test(&request, &done));
    EXPECT(done == 1);
    OK(unisono_wait(&request, 0));
    OK(unisono_group_start(c));
    OK(unisono_group_end(c));
    OK(unisono_group_start(c));
    OK(unisono_igroup_end(c, &request));
    EXPECT(request == NULL);
}

static void operations_and_memory(unisono_comm_t *c, int rank, int world)
{
    float factor = (float)(rank + 1), expected = 0.0f, *data = NULL;
    int op = 0, narrow = 0;
    void *memory = NULL;
    for (int r = 0; r < world; r++)
        expected += (float)(r + 1) * 2.0f;
    OK(unisono_mem_alloc(c, 2 * sizeof *data, &memory));
    EXPECT(memory != NULL && (uintptr_t)memory % 4096 == 0);
    data = memory;
    EXPECT(data[0] == 0.0f);
    data[0] = data[1] = 2.0f;
    OK(unisono_mem_register(c, data, 2 * sizeof *data));
    OK(unisono_op_create_pre_mul_sum(c, UNISONO_F32, &factor, &op));
    OK(unisono_op_create_pre_mul_sum(c, UNISONO_BF16, &factor, &narrow));
    EXPECT(op >= 1000 && narrow != op);
    OK(unisono_all_reduce(data, data, 2, UNISONO_F32, op, c));
    EXPECT(data[0] == expected && data[1] == expected);
    OK(unisono_mem_deregister(c, data));
    uint16_t two = 0x4000; /* 2.0 as bfloat16 */
    OK(unisono_all_reduce(&two, &two, 1, UNISONO_BF16, narrow, c));
    uint32_t wide = (uint32_t)two << 16;
    float got;
    memcpy(&got, &wide, sizeof got);
    EXPECT(got == expected);
    OK(unisono_op_destroy(c, op));
    OK(unisono_op_destroy(c, narrow));
    OK(unisono_mem_free(c, memory));
}

static void splits(unisono_comm_t *c, int rank, int world)
{
    unisono_comm_t *half = NULL, *none = (unisono_comm_t *)&half;
    int size = 0, new_rank = -1, parity = rank % 2;
    char text[256] = "";
    OK(unisono_comm_split(c, parity, -rank, &half));
    OK(unisono_comm_world_size(half, &size));
    OK(unisono_comm_rank(half, &new_rank));
    EXPECT(size == (world + 1 - parity) / 2);
    EXPECT(new_rank == size - 1 - rank / 2);
    check_usable(half);
    OK(unisono_comm_describe(half, text, sizeof text));
    EXPECT(strncmp(text, "rank ", 5) == 0 && strstr(text, "calls.c") != NULL);
    OK(unisono_comm_destroy(half));
    OK(unisono_comm_split(c, -1, 0, &none));
    EXPECT(none == NULL);
}

/* A destroyed communicator's requests are complete, and may still be asked. */
static void late_requests(unisono_comm_t *c, int rank, int world)
{
    unisono_comm_t *copy = NULL;
    unisono_request_t *request = NULL;
    int32_t data[N];
    fill(data, rank, N);
    OK(unisono_comm_split(c, 0, 0, &copy));
    OK(unisono_iall_reduce(data, data, N, UNISONO_I32, UNISONO_SUM, copy, &request));
    OK(unisono_comm_destroy(copy));
    check_sum(data, world, 0, N);
    OK(unisono_wait(&request, -1));
}

static void body(unisono_comm_t *c, int rank, int world)
{
    for (int post = 0; post < 2; post++) {
        equal_blocks(c, rank, world, post);
        ragged_blocks(c, rank, world, post);
        messages(c, rank, world, post);
    }
    groups(c, rank, world);
    operations_and_memory(c, rank, world);
    splits(c, rank, world);
    late_requests(c, rank, world);
    check_usable(c);
}

/* Ranks that meet by an id, as processes would. */
static unisono_unique_id_t id;

static void *by_id(void *context)
{
    struct rank_thread *me = context;
    unisono_config_t config = UNISONO_CONFIG_INIT;
    config.name = "calls.c";
    OK(unisono_comm_init_rank(&me->comm, me->world, &id, me->rank, &config));
    body(me->comm, me->rank, me->world);
    OK(unisono_comm_destroy(me->comm));
    return NULL;
}

static void constants(void)
{
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 1, 1, 4, 8, 8, 16};
    for (int type = UNISONO_I8; type <= UNISONO_COMPLEX128; type++) {
        size_t bytes = 0;
        OK(unisono_dtype_size(type, &bytes));
        EXPECT(bytes == sizes[type]);
    }
    EXPECT(unisono_version() == UNISONO_VERSION_MAJOR * 10000 + UNISONO_VERSION_MINOR * 100 +
                                    UNISONO_VERSION_PATCH);
    EXPECT(strcmp(unisono_status_name(UNISONO_OK), "OK") == 0);
    EXPECT(strcmp(unisono_status_name(UNISONO_OVERLAP), "OVERLAP") == 0);
    EXPECT(strcmp(unisono_status_name(-7), "UNKNOWN") == 0);
    EXPECT(strlen(unisono_status_text(-7)) > 0 && strlen(unisono_status_text(UNISONO_BUSY)) > 0);
    EXPECT(sizeof(unisono_unique_id_t) == 128 && UNISONO_UNIQUE_ID_BYTES == 128);
}

int main(void)
{
    unisono_config_t config = UNISONO_CONFIG_INIT;
    struct rank_thread threads[2];
    config.name = "calls.c";
    constants();
    for (int world = 1; world <= 4; world++)
        on_ranks(world, &config, body);
    OK(unisono_get_unique_id(&id));
    for (int rank = 0; rank < 2; rank++) {
        threads[rank].rank = rank;
        threads[rank].world = 2;
        EXPECT(pthread_create(&threads[rank].thread, NULL, by_id, &threads[rank]) == 0);
    }
    for (int rank = 0; rank < 2; rank++)
        pthread_join(threads[rank].thread, NULL);
    printf("%d wrong\n", harness_wrong);
    return harness_wrong ? 1 : 0;
}
