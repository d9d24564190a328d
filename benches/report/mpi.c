/* An MPI beside this library: times its collectives of floats on host memory and checks the data.
 *
 *   mpicc -O3 mpi.c -o bench_mpi
 *   mpirun -n 2 ./bench_mpi all_reduce 8 134217728 8
 *   mpirun -n 8 ./bench_mpi start
 *
 * Rank 0 prints a JSON object for each size, with `unisono perf --json`'s names and nccl-tests'
 * meaning of bytes: the buffer of a rank for all_reduce and broadcast, the blocks of all ranks
 * together for the others, at least one element a rank. A round is many calls back to back, its
 * figure the slowest rank's mean time of one; the first round only warms up.
 *
 * `start` makes one all_reduce of 8 bytes; then each rank prints when it was over. `version` prints
 * what MPI this is.
 */
#define _POSIX_C_SOURCE 200112L
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 7, PERIOD = 251 };

/* Buffers and counts of one size. */
struct job {
    float *source, *target;
    int whole, block; /* elements: of the buffer, of a rank's block */
    int rank, ranks;
};

struct op {
    const char *name;
    int blocks; /* bytes are those of all blocks together */
    int (*call)(const struct job *);
    double (*expected)(const struct job *, int i); /* element i of the output */
    int (*outputs)(const struct job *);            /* elements of the output */
};

/* Element i of a rank's input: whole numbers whose sums over 2^15 ranks a float holds exactly. */
static double value(int rank, int i)
{
    return (i % PERIOD + 3 * rank) % PERIOD;
}

static double sum(const struct job *job, int i)
{
    double total = 0;
    for (int rank = 0; rank < job->ranks; rank++)
        total += value(rank, i);
    return total;
}

static int whole(const struct job *job)
{
    return job->whole;
}

static int block(const struct job *job)
{
    return job->block;
}

static int all_reduce(const struct job *job)
{
    return MPI_Allreduce(job->source, job->target, job->whole, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static int broadcast(const struct job *job)
{
    float *data = job->rank == 0 ? job->source : job->target;
    return MPI_Bcast(data, job->whole, MPI_FLOAT, 0, MPI_COMM_WORLD);
}

static double from_root(const struct job *job, int i)
{
    (void)job;
    return value(0, i);
}

static int other_outputs(const struct job *job)
{
    return job->rank == 0 ? 0 : job->whole;
}

static int all_gather(const struct job *job)
{
    return MPI_Allgather(job->source, job->block, MPI_FLOAT, job->target, job->block, MPI_FLOAT,
                         MPI_COMM_WORLD);
}

static double gathered(const struct job *job, int i)
{
    return value(i / job->block, i % job->block);
}

static int reduce_scatter(const struct job *job)
{
    return MPI_Reduce_scatter_block(job->source, job->target, job->block, MPI_FLOAT, MPI_SUM,
                                    MPI_COMM_WORLD);
}

static double own_sum(const struct job *job, int i)
{
    return sum(job, job->rank * job->block + i);
}

static int all_to_all(const struct job *job)
{
    return MPI_Alltoall(job->source, job->block, MPI_FLOAT, job->target, job->block, MPI_FLOAT,
                        MPI_COMM_WORLD);
}

static double exchanged(const struct job *job, int i)
{
    return value(i / job->block, job->rank * job->block + i % job->block);
}

static const struct op OPS[] = {
    {"all_reduce", 0, all_reduce, sum, whole},
    {"broadcast", 0, broadcast, from_root, other_outputs},
    {"all_gather", 1, all_gather, gathered, whole},
    {"reduce_scatter", 1, reduce_scatter, own_sum, block},
    {"all_to_all", 1, all_to_all, exchanged, whole},
};

static void fail(const char *what)
{
    fprintf(stderr, "mpi.c: %s\n", what);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static void check(int status)
{
    if (status != MPI_SUCCESS)
        fail("a call failed");
}

static int calls(size_t bytes)
{
    if (bytes <= 65536)
        return 500;
    if (bytes <= 1048576)
        return 100;
    return bytes <= 16777216 ? 10 : 3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of the slowest rank's mean call. */
static double one_round(const struct op *op, const struct job *job, int times)
{
    check(MPI_Barrier(MPI_COMM_WORLD));
    double start = MPI_Wtime();
    for (int i = 0; i < times; i++)
        check(op->call(job));
    double mine = (MPI_Wtime() - start) / times, slowest = 0;
    check(MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD));
    return slowest;
}

/* Wrong elements on all ranks, after one more call into a spoilt output. */
static long long wrong(const struct op *op, const struct job *job)
{
    long long mine = 0, all = 0;
    int outputs = op->outputs(job);
    for (int i = 0; i < outputs; i++)
        job->target[i] = -1;
    check(MPI_Barrier(MPI_COMM_WORLD));
    check(op->call(job));
    for (int i = 0; i < outputs; i++)
        mine += job->target[i] != (float)op->expected(job, i);
    check(MPI_Allreduce(&mine, &all, 1, MPI_LONG_LONG, MPI_SUM, MPI_COMM_WORLD));
    return all;
}

static void measure(const struct op *op, struct job *job, size_t bytes)
{
    size_t parts = op->blocks ? (size_t)job->ranks : 1;
    size_t elements = bytes / sizeof(float) / parts;
    job->block = elements > 0 ? (int)elements : 1;
    job->whole = job->block * (int)parts;
    size_t moved = (size_t)job->whole * sizeof(float);
    double times[ROUNDS];
    (void)one_round(op, job, calls(moved));
    for (int round = 0; round < ROUNDS; round++)
        times[round] = one_round(op, job, calls(moved));
    long long faults = wrong(op, job);
    qsort(times, ROUNDS, sizeof times[0], by_value);
    if (job->rank == 0) {
        printf("{\"op\":\"%s\",\"ranks\":%d,\"bytes\":%zu,\"moved\":%zu,\"median_us\":%.3f,"
               "\"min_us\":%.3f,\"wrong\":%lld}\n",
               op->name, job->ranks, bytes, moved, times[ROUNDS / 2] * 1e6, times[0] * 1e6, faults);
        fflush(stdout);
    }
}

static void sweep(const struct op *op, struct job *job, size_t low, size_t high, size_t step)
{
    size_t room = high / sizeof(float) + (size_t)job->ranks;
    job->source = malloc(room * sizeof(float));
    job->target = malloc(room * sizeof(float));
    if (job->source == NULL || job->target == NULL)
        fail("no memory");
    for (size_t i = 0; i < room; i++) {
        job->source[i] = (float)value(job->rank, (int)i);
        job->target[i] = 0;
    }
    for (size_t bytes = low; bytes <= high; bytes *= step)
        measure(op, job, bytes);
    free(job->source);
    free(job->target);
}

static void start(int rank)
{
    float mine[2] = {1, (float)rank}, sums[2];
    struct timespec now;
    check(MPI_Allreduce(mine, sums, 2, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD));
    clock_gettime(CLOCK_REALTIME, &now);
    printf("{\"rank\":%d,\"done_ns\":%lld%09ld}\n", rank, (long long)now.tv_sec, now.tv_nsec);
    fflush(stdout);
}

static void version(void)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    check(MPI_Get_library_version(text, &length));
    /* The first line, without what JSON would have to escape. */
    text[strcspn(text, "\n\r")] = '\0';
    for (char *at = text; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ')
            *at = ' ';
    printf("{\"version\":\"%s\"}\n", text);
}

int main(int argc, char **argv)
{
    struct job job = {0};
    const char *name = argc > 1 ? argv[1] : "";
    check(MPI_Init(&argc, &argv));
    check(MPI_Comm_rank(MPI_COMM_WORLD, &job.rank));
    check(MPI_Comm_size(MPI_COMM_WORLD, &job.ranks));
    const struct op *op = NULL;
    for (size_t i = 0; i < sizeof OPS / sizeof OPS[0]; i++)
        if (strcmp(OPS[i].name, name) == 0)
            op = &OPS[i];
    if (op != NULL && argc == 5) {
        size_t low = strtoull(argv[2], NULL, 10), high = strtoull(argv[3], NULL, 10);
        size_t step = strtoull(argv[4], NULL, 10);
        if (low < 1 || step < 2 || high > (size_t)1 << 32)
            fail("sizes from 1 byte to 4 GiB, with a step of 2 or more");
        sweep(op, &job, low, high, step);
    } else if (strcmp(name, "start") == 0) {
        start(job.rank);
    } else if (strcmp(name, "version") == 0) {
        if (job.rank == 0)
            version();
    } else {
        fail("usage: bench_mpi OP LOW HIGH STEP | start | version");
    }
    return MPI_Finalize() == MPI_SUCCESS ? 0 : 1;
}
