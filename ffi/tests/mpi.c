/* A program with an MPI of its own: started by mpirun, with "single" or "multiple" for the thread
 * level it asks for. Its communicators and error handlers must be as they were, on both backends. */
#include <mpi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unisono.h"

#define COUNT 1000

static const char *last_error(void)
{
    static char text[1024];
    if (unisono_last_error(NULL, text, sizeof text) != UNISONO_OK)
        text[0] = '\0';
    return text;
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n%s\n", __FILE__, __LINE__, #condition,                     \
                    last_error());                                                         \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                          \
        }                                                                                          \
    } while (0)

static void *address(MPI_Comm comm)
{
    return (void *)(intptr_t)comm;
}

static void handle(MPI_Comm *comm, int *code, ...)
{
    (void)comm;
    (void)code;
}

static unisono_config_t on(const char *backend)
{
    unisono_config_t config = UNISONO_CONFIG_INIT;
    config.backend = backend;
    config.timeout_ms = 60000;
    return config;
}

/* A few calls, blocking and not, and on a split. */
static void calls(unisono_comm_t *comm, int rank, int world)
{
    int number = -1;
    CHECK(unisono_comm_rank(comm, &number) == UNISONO_OK && number == rank);
    CHECK(unisono_comm_world_size(comm, &number) == UNISONO_OK && number == world);
    float *data = malloc(COUNT * sizeof *data);
    CHECK(data != NULL);
    for (int i = 0; i < COUNT; ++i)
        data[i] = (float)(i % 7 + rank);
    unisono_request_t *request = NULL;
    CHECK(unisono_all_reduce(data, data, COUNT, UNISONO_F32, UNISONO_SUM, comm) == UNISONO_OK);
    for (int i = 0; i < COUNT; ++i)
        CHECK(data[i] == (float)(world * (i % 7) + world * (world - 1) / 2));
    CHECK(unisono_iall_reduce(data, data, COUNT, UNISONO_F32, UNISONO_AVG, comm, &request) ==
          UNISONO_OK);
    CHECK(unisono_wait(&request, -1) == UNISONO_OK);
    for (int i = 0; i < COUNT; ++i)
        CHECK(data[i] == (float)(world * (i % 7) + world * (world - 1) / 2));
    free(data);
    unisono_comm_t *half = NULL;
    CHECK(unisono_comm_split(comm, rank % 2, -rank, &half) == UNISONO_OK);
    int mine = rank;
    CHECK(unisono_broadcast(&mine, &mine, 1, UNISONO_I32, 0, half) == UNISONO_OK);
    /* Keys fall with the rank: the highest of each parity is first. */
    CHECK(mine == world - 1 - ((world - 1) % 2 != rank % 2));
    CHECK(unisono_comm_destroy(half) == UNISONO_OK);
}

static void *barrier(void *comm)
{
    return (void *)(intptr_t)unisono_barrier(comm);
}

/* Another thread may make calls where MPI allows that, and is told where not; and nothing is lost
 * by asking for what is not there. */
static void refusals(unisono_comm_t *comm, const char *backend)
{
    int level = -1, foreign = strcmp(backend, "mpi") == 0;
    void *status = NULL;
    pthread_t thread;
    MPI_Query_thread(&level);
    CHECK(pthread_create(&thread, NULL, barrier, comm) == 0);
    CHECK(pthread_join(thread, &status) == 0);
    int refused = foreign && level < MPI_THREAD_SERIALIZED;
    CHECK((intptr_t)status == (refused ? UNISONO_INVALID_STATE : UNISONO_OK));
    unisono_comm_t *shrunk = NULL;
    CHECK(unisono_comm_shrink(comm, &shrunk) == UNISONO_UNSUPPORTED && shrunk == NULL);
    char text[1024];
    CHECK(unisono_last_error(comm, text, sizeof text) == UNISONO_OK);
    CHECK(strstr(text, foreign ? "--with-ft ulfm" : "native backend") != NULL);
    CHECK(unisono_barrier(comm) == UNISONO_OK);
}

/* Ranks in reverse, and what the program set for them is still there afterwards. */
static void run(const char *backend)
{
    int rank, world;
    MPI_Comm reversed;
    MPI_Errhandler own, found;
    unisono_comm_t *comm = NULL;
    unisono_config_t config = on(backend);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    MPI_Comm_split(MPI_COMM_WORLD, 0, world - rank, &reversed);
    MPI_Comm_create_errhandler(handle, &own);
    MPI_Comm_set_errhandler(reversed, own);
    CHECK(unisono_comm_init_mpi(&comm, address(reversed), &config) == UNISONO_OK);
    MPI_Comm_get_errhandler(reversed, &found);
    CHECK(found == own);
    MPI_Errhandler_free(&found);
    calls(comm, world - 1 - rank, world);
    refusals(comm, backend);
    char text[4096];
    CHECK(unisono_comm_describe(comm, text, sizeof text) == UNISONO_OK);
    CHECK((strstr(text, "calls by ") != NULL) == (strcmp(backend, "mpi") == 0));
    CHECK(unisono_comm_destroy(comm) == UNISONO_OK);
    int sum = 0;
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, reversed);
    CHECK(sum == world * (world - 1) / 2);
    MPI_Errhandler_free(&own);
    MPI_Comm_free(&reversed);
}

int main(int argc, char **argv)
{
    int flag = 0, provided;
    unisono_comm_t *comm = NULL;
    unisono_config_t config = on("mpi");
    CHECK(argc == 2);
    CHECK(unisono_comm_init_mpi(&comm, address(MPI_COMM_WORLD), &config) ==
          UNISONO_INVALID_STATE);
    if (strcmp(argv[1], "single") == 0)
        MPI_Init(NULL, NULL);
    else
        MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
    run("mpi");
    run("native");
    CHECK(unisono_comm_init_mpi(&comm, address(MPI_COMM_NULL), &config) ==
          UNISONO_INVALID_ARGUMENT);
    CHECK(unisono_comm_init_mpi(&comm, NULL, &config) == UNISONO_INVALID_ARGUMENT);
    /* Whose ranks would that be? The program has not said. */
    CHECK(unisono_comm_init_env(&comm, &config) == UNISONO_INVALID_STATE);
    CHECK(strstr(last_error(), "unisono_comm_init_mpi") != NULL);
    MPI_Finalized(&flag);
    CHECK(!flag);
    unisono_comm_t *late = NULL;
    CHECK(unisono_comm_init_mpi(&late, address(MPI_COMM_WORLD), &config) == UNISONO_OK);
    CHECK(unisono_barrier(late) == UNISONO_OK);
    float one = 1;
    CHECK(unisono_all_reduce(&one, &one, 1, UNISONO_F32, UNISONO_SUM, late) == UNISONO_OK);
    MPI_Finalize();
    /* A call of MPI's would end the process now. */
    CHECK(unisono_all_reduce(&one, &one, 1, UNISONO_F32, UNISONO_SUM, late) != UNISONO_OK);
    CHECK(strstr(last_error(), "has been finalised") != NULL);
    CHECK(unisono_barrier(late) != UNISONO_OK);
    (void)unisono_comm_destroy(late);
    CHECK(unisono_comm_init_mpi(&comm, address(MPI_COMM_WORLD), &config) ==
          UNISONO_INVALID_STATE);
    CHECK(comm == NULL);
    /* One write, so that lines of ranks that share a pipe stay whole. */
    fputs("fine\n", stdout);
    return 0;
}
