/* harness.h: what the C tests share: checks that count, and ranks as threads. */
#ifndef HARNESS_H
#define HARNESS_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unisono.h>

static pthread_mutex_t harness_lock = PTHREAD_MUTEX_INITIALIZER;
static int harness_wrong;

static inline void check_at(int line, int good, const char *what)
{
    if (good)
        return;
    pthread_mutex_lock(&harness_lock);
    harness_wrong++;
    fprintf(stderr, "line %d: %s\n", line, what);
    pthread_mutex_unlock(&harness_lock);
}
#define EXPECT(condition) check_at(__LINE__, (condition), #condition)

static inline void ok_at(int line, int status, const char *call)
{
    char text[512] = "", all[1024];
    if (status == UNISONO_OK)
        return;
    unisono_last_error(NULL, text, sizeof text);
    snprintf(all, sizeof all, "%s: %s: %s", call, unisono_status_name(status), text);
    check_at(line, 0, all);
}
#define OK(call) ok_at(__LINE__, (call), #call)

/* `status` must be `code`, and the texts of `comm` (unless NULL) and of the thread name `value`. */
static inline void refused_at(int line, const unisono_comm_t *comm, int status, int code,
                              const char *value, const char *call)
{
    char text[1024] = "", all[2048];
    int mine = 1;
    if (comm)
        mine = unisono_last_error(comm, text, sizeof text) == UNISONO_OK && strstr(text, value);
    int good = unisono_last_error(NULL, text, sizeof text) == UNISONO_OK && strstr(text, value);
    if (status == code && good && mine)
        return;
    snprintf(all, sizeof all, "%s gave %s, not %s with \"%s\"%s: %s", call,
             unisono_status_name(status), unisono_status_name(code), value,
             mine ? "" : " on the communicator", text);
    check_at(line, 0, all);
}
#define REFUSED(comm, call, code, value)                                                           \
    do {                                                                                           \
        int status_ = (call);                                                                      \
        refused_at(__LINE__, (comm), status_, (code), (value), #call);                             \
    } while (0)

/* A call that must work. */
static inline void check_usable(unisono_comm_t *comm)
{
    int world = 0;
    float one = 1.0f;
    OK(unisono_comm_world_size(comm, &world));
    OK(unisono_all_reduce(&one, &one, 1, UNISONO_F32, UNISONO_SUM, comm));
    EXPECT(one == (float)world);
    EXPECT(unisono_comm_status(comm) == UNISONO_OK);
}

typedef void rank_body(unisono_comm_t *comm, int rank, int world);

struct rank_thread {
    pthread_t thread;
    rank_body *body;
    unisono_comm_t *comm;
    int rank, world;
};

static void *rank_main(void *context)
{
    struct rank_thread *me = context;
    me->body(me->comm, me->rank, me->world);
    return NULL;
}

#define RANKS_MAX 8

/* Runs `body` as each rank of a world of threads. */
static inline void on_ranks(int world, const unisono_config_t *config, rank_body *body)
{
    unisono_comm_t *comms[RANKS_MAX] = {0};
    struct rank_thread threads[RANKS_MAX];
    int status = unisono_comm_init_all(comms, world, config);
    ok_at(__LINE__, status, "unisono_comm_init_all");
    if (status != UNISONO_OK)
        return;
    for (int rank = 0; rank < world; rank++) {
        threads[rank].body = body;
        threads[rank].comm = comms[rank];
        threads[rank].rank = rank;
        threads[rank].world = world;
        EXPECT(pthread_create(&threads[rank].thread, NULL, rank_main, &threads[rank]) == 0);
    }
    for (int rank = 0; rank < world; rank++)
        pthread_join(threads[rank].thread, NULL);
    for (int rank = 0; rank < world; rank++)
        OK(unisono_comm_destroy(comms[rank]));
}

#endif
