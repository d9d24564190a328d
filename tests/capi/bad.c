/* bad.c: one case of bad input, by name: a named error with the offending value, and the
 * communicator as usable afterwards as the error's scope says. */
#define _POSIX_C_SOURCE 200809L
#include "harness.h"

#include <time.h>

#define F32 UNISONO_F32
#define SUM UNISONO_SUM

static unisono_comm_t *alone(void)
{
    unisono_comm_t *comm = NULL;
    int status = unisono_comm_init_all(&comm, 1, NULL);
    if (status != UNISONO_OK) {
        fprintf(stderr, "no communicator: %s\n", unisono_status_name(status));
        exit(1);
    }
    return comm;
}

static void finish(unisono_comm_t *comm)
{
    check_usable(comm);
    OK(unisono_comm_destroy(comm));
}

static void null_buffer(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL;
    float x = 0;
    REFUSED(c, unisono_all_reduce(NULL, &x, 1, F32, SUM, c), UNISONO_NULL_POINTER, "send buffer");
    REFUSED(c, unisono_all_reduce(&x, NULL, 1, F32, SUM, c), UNISONO_NULL_POINTER, "receive buffer");
    REFUSED(c, unisono_irecv(NULL, 1, F32, 0, c, &request), UNISONO_NULL_POINTER, "receive buffer");
    OK(unisono_all_reduce(NULL, NULL, 0, F32, SUM, c));
    EXPECT(request == NULL);
    finish(c);
}

static void null_output(void)
{
    unisono_comm_t *c = alone();
    unisono_unique_id_t id = {{0}};
    unisono_request_t *request = NULL;
    float x = 0;
    int number = 7;
    REFUSED(c, unisono_comm_rank(c, NULL), UNISONO_NULL_POINTER, "rank");
    REFUSED(c, unisono_comm_world_size(c, NULL), UNISONO_NULL_POINTER, "world");
    REFUSED(c, unisono_comm_split(c, 0, 0, NULL), UNISONO_NULL_POINTER, "split");
    REFUSED(c, unisono_mem_alloc(c, 8, NULL), UNISONO_NULL_POINTER, "memory");
    REFUSED(c, unisono_mem_free(c, NULL), UNISONO_NULL_POINTER, "memory");
    REFUSED(c, unisono_mem_register(c, NULL, 8), UNISONO_NULL_POINTER, "memory");
    REFUSED(c, unisono_mem_deregister(c, NULL), UNISONO_NULL_POINTER, "memory");
    REFUSED(c, unisono_iall_reduce(&x, &x, 1, F32, SUM, c, NULL), UNISONO_NULL_POINTER, "request");
    REFUSED(c, unisono_op_create_pre_mul_sum(c, F32, NULL, &number), UNISONO_NULL_POINTER, "scalar");
    REFUSED(c, unisono_op_create_pre_mul_sum(c, F32, &x, NULL), UNISONO_NULL_POINTER, "op");
    REFUSED(NULL, unisono_get_unique_id(NULL), UNISONO_NULL_POINTER, "id");
    REFUSED(NULL, unisono_comm_init_all(NULL, 1, NULL), UNISONO_NULL_POINTER, "comms");
    REFUSED(NULL, unisono_comm_init_env(NULL, NULL), UNISONO_NULL_POINTER, "comm");
    REFUSED(NULL, unisono_comm_init_rank(NULL, 1, &id, 0, NULL), UNISONO_NULL_POINTER, "comm");
    REFUSED(NULL, unisono_wait(NULL, -1), UNISONO_NULL_POINTER, "request");
    REFUSED(NULL, unisono_test(NULL, &number), UNISONO_NULL_POINTER, "request");
    REFUSED(NULL, unisono_test(&request, NULL), UNISONO_NULL_POINTER, "done");
    REFUSED(NULL, unisono_wait_any(NULL, 1, -1, NULL), UNISONO_NULL_POINTER, "requests");
    REFUSED(NULL, unisono_wait_any(&request, 1, -1, NULL), UNISONO_NULL_POINTER, "index");
    REFUSED(NULL, unisono_dtype_size(F32, NULL), UNISONO_NULL_POINTER, "bytes");
    REFUSED(NULL, unisono_barrier(NULL), UNISONO_NULL_POINTER, "comm");
    REFUSED(NULL, unisono_comm_destroy(NULL), UNISONO_NULL_POINTER, "comm");
    EXPECT(unisono_last_error(c, NULL, 10) == UNISONO_NULL_POINTER);
    EXPECT(unisono_last_error_rank(c, NULL) == UNISONO_NULL_POINTER);
    EXPECT(unisono_comm_describe(c, NULL, 10) == UNISONO_NULL_POINTER);
    EXPECT(number == 7);
    finish(c);
}

static void misaligned(void)
{
    unisono_comm_t *c = alone();
    _Alignas(16) char bytes[64] = {0};
    char value[32];
    snprintf(value, sizeof value, "%#llx", (unsigned long long)(uintptr_t)(bytes + 1));
    REFUSED(c, unisono_all_reduce(bytes + 1, bytes + 8, 1, F32, SUM, c), UNISONO_MISALIGNED, value);
    REFUSED(c, unisono_comm_rank(c, (int *)(void *)(bytes + 1)), UNISONO_MISALIGNED, value);
    REFUSED(c, unisono_all_gather_v(bytes, bytes + 8, (const uint64_t *)(void *)(bytes + 1), NULL,
                                    UNISONO_I8, c),
            UNISONO_MISALIGNED, value);
    OK(unisono_all_reduce(bytes + 1, bytes + 1, 1, UNISONO_I8, SUM, c));
    finish(c);
}

static void overlap(void)
{
    unisono_comm_t *c = alone();
    float x[8] = {0};
    char value[32];
    uint64_t counts = 2;
    snprintf(value, sizeof value, "%#llx", (unsigned long long)(uintptr_t)(x + 1));
    REFUSED(c, unisono_all_reduce(x, x + 1, 4, F32, SUM, c), UNISONO_OVERLAP, value);
    REFUSED(c, unisono_all_gather_v(x, x + 1, &counts, NULL, F32, c), UNISONO_OVERLAP, value);
    finish(c);
}

static void count_overflow(void)
{
    unisono_comm_t *c = alone();
    double x = 0;
    uint64_t huge = UINT64_MAX / 2, counts[1] = {UINT64_MAX}, places[1] = {2};
    REFUSED(c, unisono_all_reduce(&x, &x, huge, UNISONO_F64, SUM, c), UNISONO_COUNT_OVERFLOW,
            "9223372036854775807");
    REFUSED(c, unisono_all_gather_v(&x, &x, counts, places, UNISONO_F64, c), UNISONO_COUNT_OVERFLOW,
            "receive block of rank 0: count 18446744073709551615 at displacement 2");
    REFUSED(c, unisono_send(&x, huge, UNISONO_F64, 0, c), UNISONO_COUNT_OVERFLOW, "9223372036854775807");
    finish(c);
}

static void unknown_value(void)
{
    unisono_comm_t *c = alone();
    float x = 0;
    int op = 0;
    size_t bytes = 0;
    REFUSED(c, unisono_all_reduce(&x, &x, 1, 99, SUM, c), UNISONO_UNKNOWN_VALUE, "element type 99");
    REFUSED(c, unisono_all_gather(&x, &x, 1, -1, c), UNISONO_UNKNOWN_VALUE, "element type -1");
    REFUSED(c, unisono_all_reduce(&x, &x, 1, F32, 77, c), UNISONO_UNKNOWN_VALUE, "operation 77");
    REFUSED(c, unisono_op_create_pre_mul_sum(c, 99, &x, &op), UNISONO_UNKNOWN_VALUE, "99");
    REFUSED(NULL, unisono_dtype_size(16, &bytes), UNISONO_UNKNOWN_VALUE, "16");
    finish(c);
}

static void made_operation(void)
{
    unisono_comm_t *c = alone(), *other = alone();
    float x = 2;
    int op = 0;
    REFUSED(c, unisono_all_reduce(&x, &x, 1, F32, UNISONO_PRE_MUL_SUM, c), UNISONO_INVALID_ARGUMENT,
            "unisono_op_create_pre_mul_sum");
    OK(unisono_op_create_pre_mul_sum(c, F32, &x, &op));
    double y = 0;
    REFUSED(c, unisono_all_reduce(&y, &y, 1, UNISONO_F64, op, c), UNISONO_INVALID_ARGUMENT,
            "made for f32");
    REFUSED(other, unisono_all_reduce(&x, &x, 1, F32, op, other), UNISONO_UNKNOWN_VALUE, "1000");
    OK(unisono_op_destroy(c, op));
    REFUSED(c, unisono_all_reduce(&x, &x, 1, F32, op, c), UNISONO_UNKNOWN_VALUE, "1000");
    REFUSED(c, unisono_op_destroy(c, op), UNISONO_UNKNOWN_VALUE, "1000");
    finish(other);
    finish(c);
}

static void rank_out_of_range(void)
{
    unisono_comm_t *c = alone(), *none = NULL;
    unisono_unique_id_t id;
    float x = 0;
    REFUSED(c, unisono_broadcast(&x, &x, 1, F32, 7, c), UNISONO_RANK_OUT_OF_RANGE, "root 7");
    REFUSED(c, unisono_reduce(&x, &x, 1, F32, SUM, -1, c), UNISONO_RANK_OUT_OF_RANGE, "root -1");
    REFUSED(c, unisono_send(&x, 1, F32, 1, c), UNISONO_RANK_OUT_OF_RANGE, "peer 1");
    REFUSED(c, unisono_gather_v(&x, 1, NULL, NULL, NULL, F32, 3, c), UNISONO_RANK_OUT_OF_RANGE, "3");
    OK(unisono_get_unique_id(&id));
    REFUSED(NULL, unisono_comm_init_rank(&none, 2, &id, 2, NULL), UNISONO_RANK_OUT_OF_RANGE, "rank 2");
    REFUSED(NULL, unisono_comm_init_rank(&none, 2, &id, -1, NULL), UNISONO_RANK_OUT_OF_RANGE, "-1");
    EXPECT(none == NULL);
    finish(c);
}

static void destroyed_handle(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL;
    float x = 0;
    char text[64];
    int number = 5;
    OK(unisono_comm_destroy(c));
    REFUSED(NULL, unisono_barrier(c), UNISONO_INVALID_HANDLE, "is destroyed");
    REFUSED(NULL, unisono_comm_rank(c, &number), UNISONO_INVALID_HANDLE, "is destroyed");
    REFUSED(NULL, unisono_ibarrier(c, &request), UNISONO_INVALID_HANDLE, "is destroyed");
    REFUSED(NULL, unisono_all_reduce(&x, &x, 1, F32, SUM, c), UNISONO_INVALID_HANDLE, "0x");
    REFUSED(NULL, unisono_comm_abort(c), UNISONO_INVALID_HANDLE, "is destroyed");
    REFUSED(NULL, unisono_comm_destroy(c), UNISONO_INVALID_HANDLE, "is destroyed");
    EXPECT(unisono_comm_status(c) == UNISONO_INVALID_HANDLE);
    EXPECT(unisono_last_error(c, text, sizeof text) == UNISONO_INVALID_HANDLE);
    EXPECT(number == 5 && request == NULL);
}

static void foreign_handle(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL;
    _Alignas(64) char memory[256] = {0};
    float x = 0;
    REFUSED(NULL, unisono_barrier((unisono_comm_t *)8), UNISONO_INVALID_HANDLE, "0x8");
    REFUSED(NULL, unisono_barrier((unisono_comm_t *)(void *)(memory + 8)), UNISONO_INVALID_HANDLE,
            "was never one");
    REFUSED(NULL, unisono_barrier((unisono_comm_t *)(void *)memory), UNISONO_INVALID_HANDLE,
            "was never one");
    OK(unisono_iall_reduce(&x, &x, 1, F32, SUM, c, &request));
    REFUSED(NULL, unisono_barrier((unisono_comm_t *)request), UNISONO_INVALID_HANDLE, "was never one");
    unisono_request_t *wrong = (unisono_request_t *)c;
    REFUSED(NULL, unisono_wait(&wrong, 0), UNISONO_INVALID_HANDLE, "was never one");
    OK(unisono_wait(&request, -1));
    finish(c);
}

static void reported_request(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL, *kept, *next = NULL, *both[2];
    size_t index = 9;
    OK(unisono_ibarrier(c, &request));
    kept = request;
    OK(unisono_wait(&request, -1));
    REFUSED(NULL, unisono_wait(&kept, -1), UNISONO_INVALID_HANDLE, "has been reported");
    OK(unisono_ibarrier(c, &next)); /* in the same memory */
    REFUSED(NULL, unisono_wait(&kept, -1), UNISONO_INVALID_HANDLE, "has been reported");
    both[0] = both[1] = next;
    REFUSED(NULL, unisono_wait_any(both, 2, -1, &index), UNISONO_BUSY, "request 1");
    EXPECT(index == 9);
    OK(unisono_wait(&next, -1));
    finish(c);
}

static void nothing_to_wait_for(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *none[3] = {NULL, NULL, NULL};
    size_t index = 9;
    float x = 0;
    REFUSED(NULL, unisono_wait_any(none, 3, -1, &index), UNISONO_INVALID_ARGUMENT, "3 requests");
    REFUSED(NULL, unisono_wait_any(none, 0, -1, &index), UNISONO_INVALID_ARGUMENT, "0 requests");
    REFUSED(NULL, unisono_wait(none, -2), UNISONO_INVALID_ARGUMENT, "timeout_ms -2");
    OK(unisono_irecv(&x, 1, F32, 0, c, &none[1]));
    EXPECT(unisono_wait(&none[1], 0) == UNISONO_IN_PROGRESS);
    EXPECT(unisono_wait_any(none, 3, 1, &index) == UNISONO_IN_PROGRESS);
    EXPECT(index == 9 && none[1] != NULL);
    float y = 4;
    OK(unisono_send(&y, 1, F32, 0, c));
    OK(unisono_wait_any(none, 3, -1, &index));
    EXPECT(index == 1 && x == 4);
    finish(c);
}

static void aborted(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL, *requests[1];
    float x = 0;
    size_t index = 9;
    OK(unisono_irecv(&x, 1, F32, 0, c, &request));
    OK(unisono_irecv(&x, 1, F32, 0, c, &requests[0]));
    OK(unisono_comm_abort(c));
    OK(unisono_comm_abort(c));
    REFUSED(c, unisono_wait(&request, -1), UNISONO_ABORTED, "aborted");
    EXPECT(request == NULL);
    REFUSED(c, unisono_wait_any(requests, 1, -1, &index), UNISONO_ABORTED, "aborted");
    EXPECT(index == 0 && requests[0] == NULL);
    REFUSED(c, unisono_barrier(c), UNISONO_ABORTED, "aborted");
    EXPECT(unisono_comm_status(c) == UNISONO_ABORTED);
    OK(unisono_comm_destroy(c));
}

static void mismatch_body(unisono_comm_t *c, int rank, int world)
{
    float x[8] = {0};
    char text[1024] = "";
    (void)world;
    int status = unisono_all_reduce(x, x, rank == 0 ? 4 : 5, F32, SUM, c);
    EXPECT(status == UNISONO_MISMATCH);
    OK(unisono_last_error(c, text, sizeof text));
    if (!strstr(text, "count 4") || !strstr(text, "count 5"))
        check_at(__LINE__, 0, text);
    EXPECT(unisono_comm_status(c) == UNISONO_MISMATCH);
    EXPECT(unisono_barrier(c) != UNISONO_OK);
}

static void mismatch(void)
{
    on_ranks(2, NULL, mismatch_body);
}

static void damaged_id(void)
{
    unisono_comm_t *c = NULL;
    unisono_unique_id_t id, zero = {{0}};
    OK(unisono_get_unique_id(&id));
    id.bytes[20] ^= 1;
    REFUSED(NULL, unisono_comm_init_rank(&c, 2, &id, 0, NULL), UNISONO_INVALID_ID, "checksum");
    REFUSED(NULL, unisono_comm_init_rank(&c, 2, &zero, 0, NULL), UNISONO_INVALID_ID, "begin");
    REFUSED(NULL, unisono_comm_init_rank(&c, 2, NULL, 0, NULL), UNISONO_NULL_POINTER, "id");
    EXPECT(c == NULL);
}

static void environment(void)
{
    unisono_comm_t *c = NULL;
    unisono_config_t config = UNISONO_CONFIG_INIT;
    REFUSED(NULL, unisono_comm_init_env(&c, NULL), UNISONO_NO_LAUNCHER, "UNISONO_RANK");
    setenv("UNISONO_RANK", "0", 1);
    REFUSED(NULL, unisono_comm_init_env(&c, NULL), UNISONO_INVALID_ENVIRONMENT,
            "UNISONO_WORLD is missing");
    setenv("UNISONO_WORLD", "0", 1);
    REFUSED(NULL, unisono_comm_init_env(&c, NULL), UNISONO_INVALID_ENVIRONMENT, "UNISONO_WORLD=0");
    setenv("UNISONO_WORLD", "two", 1);
    REFUSED(NULL, unisono_comm_init_env(&c, NULL), UNISONO_INVALID_ENVIRONMENT, "\"two\"");
    unsetenv("UNISONO_RANK");
    unsetenv("UNISONO_WORLD");
    setenv("UNISONO_TIMEOUT_MS", "soon", 1);
    REFUSED(NULL, unisono_comm_init_all(&c, 1, &config), UNISONO_INVALID_ENVIRONMENT, "\"soon\"");
    unsetenv("UNISONO_TIMEOUT_MS");
    EXPECT(c == NULL);
}

static void world_of_0(void)
{
    unisono_comm_t *c = NULL;
    unisono_unique_id_t id;
    REFUSED(NULL, unisono_comm_init_all(&c, 0, NULL), UNISONO_INVALID_ARGUMENT, "0");
    REFUSED(NULL, unisono_comm_init_all(&c, -3, NULL), UNISONO_INVALID_ARGUMENT, "-3");
    REFUSED(NULL, unisono_comm_init_all(&c, 1000000, NULL), UNISONO_INVALID_ARGUMENT, "1000000");
    OK(unisono_get_unique_id(&id));
    REFUSED(NULL, unisono_comm_init_rank(&c, 0, &id, 0, NULL), UNISONO_INVALID_ARGUMENT, "0");
    EXPECT(c == NULL);
}

static void *blocked(void *context)
{
    struct rank_thread *me = context;
    float x = 0;
    int status = UNISONO_BUSY;
    while (status == UNISONO_BUSY) /* until the first thread is outside */
        status = unisono_recv(&x, 1, F32, 0, me->comm);
    EXPECT(status == UNISONO_ABORTED);
    return NULL;
}

static void busy(void)
{
    unisono_comm_t *c = alone();
    struct rank_thread other = {.comm = c};
    struct timespec pause = {0, 1000000};
    int status = UNISONO_OK;
    EXPECT(pthread_create(&other.thread, NULL, blocked, &other) == 0);
    while ((status = unisono_barrier(c)) == UNISONO_OK) /* until the other is inside */
        nanosleep(&pause, NULL);
    REFUSED(c, status, UNISONO_BUSY, "one at a time");
    REFUSED(NULL, unisono_comm_destroy(c), UNISONO_BUSY, "another thread");
    EXPECT(unisono_comm_status(c) == UNISONO_OK);
    OK(unisono_comm_abort(c));
    pthread_join(other.thread, NULL);
    OK(unisono_comm_destroy(c));
}

static void unsupported(void)
{
    unisono_comm_t *c = alone();
    float x[2] = {0};
    REFUSED(c, unisono_all_reduce(x, x, 1, F32, UNISONO_BAND, c), UNISONO_UNSUPPORTED, "band on f32");
    REFUSED(c, unisono_all_reduce(x, x, 1, UNISONO_COMPLEX64, UNISONO_MAX, c), UNISONO_UNSUPPORTED,
            "max on complex64");
    REFUSED(c, unisono_comm_set_stream(c, NULL), UNISONO_UNSUPPORTED, "no GPU");
    REFUSED(c, unisono_comm_clear_stream(c), UNISONO_UNSUPPORTED, "no GPU");
    finish(c);
}

static void configuration(void)
{
    unisono_comm_t *c = NULL;
    struct {
        unisono_config_t config;
        uint64_t more;
    } longer = {UNISONO_CONFIG_INIT, 0};
    unisono_config_t *config = &longer.config;
    config->size = 3;
    REFUSED(NULL, unisono_comm_init_all(&c, 1, config), UNISONO_INVALID_ARGUMENT, "config.size 3");
    config->size = sizeof longer;
    longer.more = 1;
    REFUSED(NULL, unisono_comm_init_all(&c, 1, config), UNISONO_INVALID_ARGUMENT, "newer");
    longer.more = 0;
    config->deterministic = 3;
    REFUSED(NULL, unisono_comm_init_all(&c, 1, config), UNISONO_UNKNOWN_VALUE, "deterministic 3");
    config->deterministic = 1;
    config->links = "smoke";
    REFUSED(NULL, unisono_comm_init_all(&c, 1, config), UNISONO_UNKNOWN_VALUE, "\"smoke\"");
    config->links = NULL;
    config->timeout_ms = -5;
    REFUSED(NULL, unisono_comm_init_all(&c, 1, config), UNISONO_INVALID_ARGUMENT, "timeout_ms -5");
    config->timeout_ms = INT64_MAX;
    EXPECT(c == NULL);
    OK(unisono_comm_init_all(&c, 1, config));
    finish(c);
    config->size = 16; /* an older header's */
    OK(unisono_comm_init_all(&c, 1, config));
    finish(c);
}

static void group_order(void)
{
    unisono_comm_t *c = alone();
    unisono_request_t *request = NULL;
    float x = 1;
    REFUSED(c, unisono_group_end(c), UNISONO_INVALID_STATE, "no group");
    REFUSED(c, unisono_igroup_end(c, &request), UNISONO_INVALID_STATE, "no group");
    OK(unisono_group_start(c));
    REFUSED(c, unisono_group_start(c), UNISONO_INVALID_STATE, "nest");
    REFUSED(c, unisono_ibarrier(c, &request), UNISONO_INVALID_STATE, "group");
    REFUSED(c, unisono_broadcast(&x, &x, 1, F32, 9, c), UNISONO_RANK_OUT_OF_RANGE, "9");
    OK(unisono_all_reduce(&x, &x, 1, F32, SUM, c));
    OK(unisono_group_end(c));
    EXPECT(request == NULL);
    finish(c);
}

static void foreign_memory(void)
{
    unisono_comm_t *c = alone();
    void *memory = NULL;
    float x = 0;
    char value[32];
    snprintf(value, sizeof value, "%p", (void *)&x);
    REFUSED(c, unisono_mem_free(c, &x), UNISONO_INVALID_ARGUMENT, value);
    REFUSED(c, unisono_mem_alloc(c, 0, &memory), UNISONO_INVALID_ARGUMENT, "0 bytes");
    EXPECT(memory == NULL);
    EXPECT(unisono_mem_alloc(c, SIZE_MAX, &memory) >= UNISONO_INVALID_ARGUMENT && memory == NULL);
    OK(unisono_mem_alloc(c, 8, &memory));
    OK(unisono_mem_free(c, memory));
    REFUSED(c, unisono_mem_free(c, memory), UNISONO_INVALID_ARGUMENT, "not memory");
    REFUSED(c, unisono_mem_register(c, &x, 0), UNISONO_INVALID_ARGUMENT, "0 bytes");
    REFUSED(c, unisono_mem_register(c, &x, SIZE_MAX), UNISONO_INVALID_ARGUMENT, value);
    REFUSED(c, unisono_mem_deregister(c, &x), UNISONO_INVALID_ARGUMENT, value);
    OK(unisono_mem_register(c, &x, sizeof x));
    REFUSED(c, unisono_mem_register(c, (char *)&x + 1, 1), UNISONO_OVERLAP, value);
    OK(unisono_mem_deregister(c, &x));
    REFUSED(c, unisono_mem_deregister(c, &x), UNISONO_INVALID_ARGUMENT, value);
    finish(c);
}

static void bad_counts(void)
{
    unisono_comm_t *c = alone();
    float in[4] = {0}, out[4] = {0};
    uint64_t counts[1] = {2};
    REFUSED(c, unisono_all_gather_v(in, out, NULL, NULL, F32, c), UNISONO_NULL_POINTER, "recv_counts");
    REFUSED(c, unisono_scatter_v(in, NULL, NULL, out, 2, F32, 0, c), UNISONO_NULL_POINTER,
            "send_counts");
    REFUSED(c, unisono_gather_v(in, 3, out, counts, NULL, F32, 0, c), UNISONO_INVALID_ARGUMENT, "3");
    finish(c);
}

static void overlapping_blocks_body(unisono_comm_t *c, int rank, int world)
{
    float in[4] = {0}, out[4] = {0};
    uint64_t counts[2] = {2, 2}, places[2] = {0, 1};
    (void)rank;
    (void)world;
    REFUSED(c, unisono_all_gather_v(in, out, counts, places, F32, c), UNISONO_OVERLAP, "blocks");
    check_usable(c);
}

static void overlapping_blocks(void)
{
    on_ranks(2, NULL, overlapping_blocks_body);
}

static void *elsewhere(void *context)
{
    char text[64] = "x";
    int rank = 5;
    (void)context;
    OK(unisono_last_error(NULL, text, sizeof text));
    EXPECT(text[0] == '\0');
    OK(unisono_last_error_rank(NULL, &rank));
    EXPECT(rank == -1);
    return NULL;
}

static void last_errors(void)
{
    unisono_comm_t *c = alone(), *other = alone();
    pthread_t thread;
    char text[256], little[8];
    float x = 0;
    EXPECT(unisono_broadcast(&x, &x, 1, F32, 41, c) == UNISONO_RANK_OUT_OF_RANGE);
    EXPECT(unisono_broadcast(&x, &x, 1, F32, 42, other) == UNISONO_RANK_OUT_OF_RANGE);
    OK(unisono_last_error(c, text, sizeof text));
    EXPECT(strstr(text, "41") != NULL);
    OK(unisono_last_error(other, text, sizeof text));
    EXPECT(strstr(text, "42") != NULL);
    OK(unisono_last_error(NULL, text, sizeof text));
    EXPECT(strstr(text, "42") != NULL);
    OK(unisono_last_error(NULL, little, sizeof little));
    EXPECT(strlen(little) == sizeof little - 1);
    EXPECT(unisono_last_error(NULL, little, 0) == UNISONO_INVALID_ARGUMENT);
    EXPECT(pthread_create(&thread, NULL, elsewhere, NULL) == 0);
    pthread_join(thread, NULL);
    finish(other);
    finish(c);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"null_buffer", null_buffer},
    {"null_output", null_output},
    {"misaligned", misaligned},
    {"overlap", overlap},
    {"count_overflow", count_overflow},
    {"unknown_value", unknown_value},
    {"made_operation", made_operation},
    {"rank_out_of_range", rank_out_of_range},
    {"destroyed_handle", destroyed_handle},
    {"foreign_handle", foreign_handle},
    {"reported_request", reported_request},
    {"nothing_to_wait_for", nothing_to_wait_for},
    {"aborted", aborted},
    {"mismatch", mismatch},
    {"damaged_id", damaged_id},
    {"environment", environment},
    {"world_of_0", world_of_0},
    {"busy", busy},
    {"unsupported", unsupported},
    {"configuration", configuration},
    {"group_order", group_order},
    {"foreign_memory", foreign_memory},
    {"bad_counts", bad_counts},
    {"overlapping_blocks", overlapping_blocks},
    {"last_errors", last_errors},
};

int main(int argc, char **argv)
{
    int found = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (argc < 2 || strcmp(argv[1], cases[i].name) == 0) {
            int before = harness_wrong;
            cases[i].run();
            found = 1;
            if (harness_wrong != before)
                fprintf(stderr, "%s: %d wrong\n", cases[i].name, harness_wrong - before);
        }
    if (!found)
        fprintf(stderr, "no case of that name\n");
    return found && harness_wrong == 0 ? 0 : 1;
}
