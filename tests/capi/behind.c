/* behind.c: a rank of a job of two processes with one GPU, whose program runs far ahead: it puts
 * thousands of pieces of work behind a call in a stream while the other rank is late. The call must
 * end all the same, with the right result, and what is behind it must come after it.
 *
 *   unisono run -n 2 -- ./behind [PIECES [LATE_MS]]
 *
 * The driver is the one of UNISONO_CUDA_LIB, else libcuda.so.1. Also worth a run:
 * CUDA_DEVICE_MAX_CONNECTIONS=1, which leaves all streams one queue of the device's. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <time.h>

#include "harness.h"

#define ELEMENTS 1000
#define TIMEOUT_MS 10000
#define NON_BLOCKING 1u  /* CU_STREAM_NON_BLOCKING */
#define WITHOUT_TIMING 2u /* CU_EVENT_DISABLE_TIMING */

typedef unsigned long long address; /* CUdeviceptr */

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* The driver's calls that are made here; all give 0 where all is well. */
static struct {
    int (*init)(unsigned);
    int (*device)(int *, int);
    int (*retain)(void **, int);
    int (*set)(void *);
    int (*allocate)(address *, size_t);
    int (*stream)(void **, unsigned, int);
    int (*wait)(void *);
    int (*event)(void **, unsigned);
    int (*record)(void *, void *);
    int (*wait_event)(void *, void *, unsigned);
    int (*fill)(address, unsigned char, size_t, void *);
    int (*copy_in)(address, const void *, size_t, void *);
    int (*copy_out)(void *, address, size_t, void *);
} cu;

static void *driver;

static void find(void *place, const char *name)
{
    void *symbol = dlsym(driver, name);
    if (!symbol) {
        fprintf(stderr, "the CUDA driver has no %s\n", name);
        exit(2);
    }
    memcpy(place, &symbol, sizeof symbol);
}

static void open_driver(void)
{
    const char *name = getenv("UNISONO_CUDA_LIB");
    driver = dlopen(name && *name ? name : "libcuda.so.1", RTLD_NOW);
    if (!driver) {
        fprintf(stderr, "no CUDA driver: %s\n", dlerror());
        exit(2);
    }
    find(&cu.init, "cuInit");
    find(&cu.device, "cuDeviceGet");
    find(&cu.retain, "cuDevicePrimaryCtxRetain");
    find(&cu.set, "cuCtxSetCurrent");
    find(&cu.allocate, "cuMemAlloc_v2");
    find(&cu.stream, "cuStreamCreateWithPriority");
    find(&cu.wait, "cuStreamSynchronize");
    find(&cu.event, "cuEventCreate");
    find(&cu.record, "cuEventRecord");
    find(&cu.wait_event, "cuStreamWaitEvent");
    find(&cu.fill, "cuMemsetD8Async");
    find(&cu.copy_in, "cuMemcpyHtoDAsync_v2");
    find(&cu.copy_out, "cuMemcpyDtoHAsync_v2");
}

#define CU(call)                                                                                   \
    do {                                                                                           \
        int code_ = (call);                                                                        \
        if (code_ != 0) {                                                                          \
            fprintf(stderr, "line %d: %s: CUDA's error %d\n", __LINE__, #call, code_);             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void *stream, *beside, *passed;
static address sent, received, scratch;

/* One call, and `pieces` pieces of work behind it, there and in a stream that waits for it. */
static void round_of(unisono_comm_t *comm, int rank, long pieces, long late, unsigned char mark)
{
    float out[ELEMENTS], in[ELEMENTS];
    unsigned char last = 0;
    for (int i = 0; i < ELEMENTS; i++)
        in[i] = (float)(i + mark);
    CU(cu.copy_in(sent, in, sizeof in, stream));
    if (rank == 1)
        sleep_ms(late);
    double begun = now_ms();
    OK(unisono_all_reduce((void *)(uintptr_t)sent, (void *)(uintptr_t)received, ELEMENTS,
                          UNISONO_F32, UNISONO_SUM, comm));
    double taken = now_ms();
    CU(cu.record(passed, stream));
    CU(cu.wait_event(beside, passed, 0));
    for (long i = 0; i < pieces; i++) {
        CU(cu.fill(scratch, mark, 4, stream));
        CU(cu.fill(scratch + 4, mark, 4, beside));
    }
    double put = now_ms();
    CU(cu.copy_out(out, received, sizeof out, stream));
    CU(cu.copy_out(&last, scratch + 4, 1, beside));
    CU(cu.wait(stream));
    CU(cu.wait(beside));
    double done = now_ms();
    int right = last == mark;
    for (int i = 0; i < ELEMENTS; i++)
        right &= out[i] == 2 * in[i];
    EXPECT(right);
    OK(unisono_comm_status(comm));
    printf("rank %d: %ld pieces: the call returned after %.3f ms, all was put there after %.3f ms "
           "and done after %.3f ms\n",
           rank, pieces, taken - begun, put - begun, done - begun);
}

int main(int argc, char **argv)
{
    long pieces = argc > 1 ? atol(argv[1]) : 4000, late = argc > 2 ? atol(argv[2]) : 300;
    const char *named = getenv("UNISONO_DEVICE");
    char number[16];
    snprintf(number, sizeof number, "%d", named ? atoi(named) : 0);
    int device = 0, rank = 0, world = 0;
    void *context = NULL;
    open_driver();
    CU(cu.init(0));
    CU(cu.device(&device, atoi(number)));
    CU(cu.retain(&context, device));
    CU(cu.set(context));
    CU(cu.allocate(&sent, 4 * ELEMENTS));
    CU(cu.allocate(&received, 4 * ELEMENTS));
    CU(cu.allocate(&scratch, 8));
    CU(cu.stream(&stream, NON_BLOCKING, 0));
    CU(cu.stream(&beside, NON_BLOCKING, 0));
    CU(cu.event(&passed, WITHOUT_TIMING));

    unisono_config_t config = UNISONO_CONFIG_INIT;
    config.timeout_ms = TIMEOUT_MS;
    config.device = number;
    unisono_comm_t *comm = NULL;
    OK(unisono_comm_init_env(&comm, &config));
    if (!comm)
        return 1;
    OK(unisono_comm_rank(comm, &rank));
    OK(unisono_comm_world_size(comm, &world));
    EXPECT(world == 2);
    OK(unisono_comm_set_stream(comm, stream));
    round_of(comm, rank, 10, 0, 1);
    round_of(comm, rank, pieces, late, 2);
    round_of(comm, rank, pieces, late, 3);
    OK(unisono_comm_destroy(comm));
    if (harness_wrong == 0)
        printf("rank %d: all of it came after the call\n", rank);
    return harness_wrong != 0;
}
