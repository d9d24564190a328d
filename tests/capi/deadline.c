/* deadline.c: requests whose deadline runs out. Without arguments: ranks that are threads, in every
 * way to wait. With one: a rank of a job of two processes, of which rank 1 never sends. */
#define _POSIX_C_SOURCE 200809L
#include <time.h>

#include "harness.h"

#define F32 UNISONO_F32
#define GIVE_UP_SECONDS 60

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void expect_timed_out(unisono_comm_t *c, int status)
{
    char text[1024] = "";
    EXPECT(status == UNISONO_TIMED_OUT);
    OK(unisono_last_error(c, text, sizeof text));
    if (!strstr(text, "rank 1"))
        check_at(__LINE__, 0, text);
    EXPECT(unisono_comm_status(c) == UNISONO_TIMED_OUT);
    /* What ended the communicator stays its error. */
    EXPECT(unisono_barrier(c) == UNISONO_TIMED_OUT);
}

/* A wait that is shorter than the deadline leaves the request; the next one hears of its end. */
static void waits(unisono_comm_t *c)
{
    float x = 7;
    unisono_request_t *request = NULL;
    OK(unisono_irecv(&x, 1, F32, 1, c, &request));
    EXPECT(unisono_wait(&request, 1) == UNISONO_IN_PROGRESS && request != NULL);
    int status = unisono_wait(&request, -1);
    EXPECT(request == NULL && x == 7);
    expect_timed_out(c, status);
}

static void tests(unisono_comm_t *c)
{
    float x = 7;
    unisono_request_t *request = NULL;
    OK(unisono_iall_reduce(&x, &x, 1, F32, UNISONO_SUM, c, &request));
    double end = now() + GIVE_UP_SECONDS;
    int status = UNISONO_OK, done = 0;
    while (status == UNISONO_OK && !done && now() < end)
        status = unisono_test(&request, &done);
    EXPECT(request == NULL);
    expect_timed_out(c, status);
}

static void waits_for_any(unisono_comm_t *c)
{
    float x[2] = {0};
    size_t index = 9;
    unisono_request_t *requests[2] = {NULL, NULL};
    OK(unisono_irecv(&x[0], 1, F32, 1, c, &requests[0]));
    OK(unisono_irecv(&x[1], 1, F32, 1, c, &requests[1]));
    EXPECT(unisono_wait_any(requests, 2, 1, &index) == UNISONO_IN_PROGRESS && index == 9);
    int status = unisono_wait_any(requests, 2, -1, &index);
    EXPECT(index < 2 && requests[index] == NULL);
    expect_timed_out(c, status);
    EXPECT(unisono_wait(&requests[1 - index], -1) == UNISONO_TIMED_OUT);
}

/* Nobody waits: the progress thread finds that the time is over. */
static void nobody_waits(unisono_comm_t *c)
{
    float x = 7;
    unisono_request_t *request = NULL;
    OK(unisono_iall_reduce(&x, &x, 1, F32, UNISONO_SUM, c, &request));
    double end = now() + GIVE_UP_SECONDS;
    while (unisono_comm_status(c) == UNISONO_OK && now() < end)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    EXPECT(unisono_comm_status(c) == UNISONO_TIMED_OUT);
    EXPECT(unisono_wait(&request, -1) == UNISONO_TIMED_OUT && request == NULL);
}

static void (*way)(unisono_comm_t *);

static void body(unisono_comm_t *c, int rank, int world)
{
    (void)world;
    if (rank == 0)
        way(c); /* rank 1 makes no call at all */
}

static void as_process(void)
{
    unisono_comm_t *c = NULL;
    int rank = 0;
    float x = 7;
    unisono_request_t *request = NULL;
    unisono_config_t config = UNISONO_CONFIG_INIT;
    OK(unisono_comm_init_env(&c, NULL));
    if (!c)
        return;
    OK(unisono_comm_rank(c, &rank));
    OK(unisono_comm_destroy(c));
    config.timeout_ms = rank == 0 ? 300 : -1;
    OK(unisono_comm_init_env(&c, &config));
    if (rank == 0) {
        OK(unisono_irecv(&x, 1, F32, 1, c, &request));
        int status = unisono_wait(&request, -1);
        EXPECT(request == NULL);
        expect_timed_out(c, status);
    } else {
        /* Without a deadline of its own: rank 0's ends this. */
        EXPECT(unisono_barrier(c) == UNISONO_TIMED_OUT);
    }
    OK(unisono_comm_destroy(c));
}

int main(int argc, char **argv)
{
    (void)argv;
    void (*const ways[])(unisono_comm_t *) = {waits, tests, waits_for_any, nobody_waits};
    if (argc > 1)
        as_process();
    for (int i = 0; argc == 1 && i < 4; i++) {
        /* This leaves it to the progress thread to find that the time is over. */
        int least = ways[i] == nobody_waits;
        for (int progress = 1; progress >= least; progress--) {
            unisono_config_t config = UNISONO_CONFIG_INIT;
            config.timeout_ms = 300;
            config.progress_thread = progress;
            way = ways[i];
            on_ranks(2, &config, body);
        }
    }
    printf("%d wrong\n", harness_wrong);
    return harness_wrong != 0;
}
