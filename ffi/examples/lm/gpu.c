/* gpu.c: see gpu.h. */
#include "gpu.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"

#define NON_BLOCKING 1u /* CU_STREAM_NON_BLOCKING: the default stream does not hold it up */

typedef unsigned long long device_address; /* CUdeviceptr */

/* The driver's calls, by the names that its library has them under. CUresult is an int, 0 where all
 * is well; contexts and streams are pointers. */
struct driver {
    int (*init)(unsigned flags);
    int (*error_name)(int code, const char **name);
    int (*error_string)(int code, const char **text);
    int (*device_count)(int *count);
    int (*device_get)(int *device, int ordinal);
    int (*context_retain)(void **context, int device);
    int (*context_release)(int device);
    int (*context_set)(void *context);
    int (*stream_create)(void **stream, unsigned flags, int priority);
    int (*stream_wait)(void *stream);
    int (*stream_destroy)(void *stream);
    int (*allocate)(device_address *address, size_t bytes);
    int (*release)(device_address address);
    int (*host_allocate)(void **memory, size_t bytes, unsigned flags);
    int (*host_release)(void *memory);
    int (*copy_in)(device_address target, const void *source, size_t bytes, void *stream);
    int (*copy_out)(void *target, device_address source, size_t bytes, void *stream);
};

static const struct {
    const char *name;
    size_t offset; /* in struct driver */
} symbols[] = {
    {"cuInit", offsetof(struct driver, init)},
    {"cuGetErrorName", offsetof(struct driver, error_name)},
    {"cuGetErrorString", offsetof(struct driver, error_string)},
    {"cuDeviceGetCount", offsetof(struct driver, device_count)},
    {"cuDeviceGet", offsetof(struct driver, device_get)},
    {"cuDevicePrimaryCtxRetain", offsetof(struct driver, context_retain)},
    {"cuDevicePrimaryCtxRelease_v2", offsetof(struct driver, context_release)},
    {"cuCtxSetCurrent", offsetof(struct driver, context_set)},
    {"cuStreamCreateWithPriority", offsetof(struct driver, stream_create)},
    {"cuStreamSynchronize", offsetof(struct driver, stream_wait)},
    {"cuStreamDestroy_v2", offsetof(struct driver, stream_destroy)},
    {"cuMemAlloc_v2", offsetof(struct driver, allocate)},
    {"cuMemFree_v2", offsetof(struct driver, release)},
    {"cuMemHostAlloc", offsetof(struct driver, host_allocate)},
    {"cuMemFreeHost", offsetof(struct driver, host_release)},
    {"cuMemcpyHtoDAsync_v2", offsetof(struct driver, copy_in)},
    {"cuMemcpyDtoHAsync_v2", offsetof(struct driver, copy_out)},
};

struct gpu {
    const struct job *job;
    struct driver driver;
    int number;            /* as users count */
    int device;            /* as the driver calls it */
    void *context;         /* NULL: not retained */
    void *stream;          /* NULL: none yet */
    device_address memory; /* 0: none yet */
};

/* ---- errors ---- */

/* What `call` has come to, in words; 1 where it went well. */
static int went_well(const struct gpu *gpu, const char *call, int code, char *text, size_t bytes)
{
    const char *name = NULL, *meaning = NULL;
    if (code == 0)
        return 1;
    if (gpu->driver.error_name(code, &name) != 0 || !name)
        name = "no name";
    if (gpu->driver.error_string(code, &meaning) != 0 || !meaning)
        meaning = "unknown to this driver";
    snprintf(text, bytes, "%s: %s (%s, %d)", call, meaning, name, code);
    return 0;
}

/* Ends the process where a call has failed. The driver takes back what a process has when it ends;
 * to free memory here could wait for other ranks' work, which waits for this rank. */
static void check(const struct gpu *gpu, const char *call, int code)
{
    char text[512];
    if (!went_well(gpu, call, code, text, sizeof text))
        job_fail(gpu->job, "GPU %d: %s", gpu->number, text);
}

/* ---- opening and closing ---- */

static int load_driver(struct gpu *gpu, char *reason, size_t bytes)
{
    const char *name = getenv("UNISONO_CUDA_LIB");
    if (!name || !*name)
        name = "libcuda.so.1";
    void *library = dlopen(name, RTLD_NOW);
    if (!library) {
        snprintf(reason, bytes, "no CUDA driver: %s", dlerror());
        return 0;
    }
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol) {
            snprintf(reason, bytes, "%s is no CUDA driver: it has no %s", name, symbols[i].name);
            dlclose(library);
            return 0;
        }
        /* C has no conversion between pointers to data and to functions; POSIX has. */
        memcpy((char *)&gpu->driver + symbols[i].offset, &symbol, sizeof symbol);
    }
    return 1;
}

static int choose_device(struct gpu *gpu, int device, char *reason, size_t bytes)
{
    int count = 0;
    if (!went_well(gpu, "cuInit", gpu->driver.init(0), reason, bytes) ||
        !went_well(gpu, "cuDeviceGetCount", gpu->driver.device_count(&count), reason, bytes))
        return 0;
    if (count == 0) {
        snprintf(reason, bytes, "the CUDA driver finds no GPU");
        return 0;
    }
    if (device >= count) {
        snprintf(reason, bytes, "there is no GPU %d: they are numbered from 0 to %d", device,
                 count - 1);
        return 0;
    }
    gpu->number = device == DEVICE_AUTO ? job_local_rank() % count : device;
    return went_well(gpu, "cuDeviceGet", gpu->driver.device_get(&gpu->device, gpu->number), reason,
                     bytes);
}

static int make_stream(struct gpu *gpu, char *reason, size_t bytes)
{
    int code = gpu->driver.context_retain(&gpu->context, gpu->device);
    if (!went_well(gpu, "cuDevicePrimaryCtxRetain", code, reason, bytes)) {
        gpu->context = NULL;
        return 0;
    }
    code = gpu->driver.context_set(gpu->context);
    if (!went_well(gpu, "cuCtxSetCurrent", code, reason, bytes))
        return 0;
    code = gpu->driver.stream_create(&gpu->stream, NON_BLOCKING, 0);
    if (went_well(gpu, "cuStreamCreateWithPriority", code, reason, bytes))
        return 1;
    gpu->stream = NULL;
    return 0;
}

struct gpu *gpu_open(int device, const struct job *job, char *reason, size_t reason_bytes)
{
    if (device == DEVICE_NONE) {
        snprintf(reason, reason_bytes, "none was asked for");
        return NULL;
    }
    struct gpu *gpu = allocate(1, sizeof *gpu);
    gpu->job = job;
    if (load_driver(gpu, reason, reason_bytes) &&
        choose_device(gpu, device, reason, reason_bytes) &&
        make_stream(gpu, reason, reason_bytes))
        return gpu;
    gpu_close(gpu);
    return NULL;
}

void gpu_close(struct gpu *gpu)
{
    if (!gpu)
        return;
    if (gpu->memory)
        check(gpu, "cuMemFree", gpu->driver.release(gpu->memory));
    if (gpu->stream)
        check(gpu, "cuStreamDestroy", gpu->driver.stream_destroy(gpu->stream));
    if (gpu->context) {
        check(gpu, "cuCtxSetCurrent", gpu->driver.context_set(NULL));
        check(gpu, "cuDevicePrimaryCtxRelease", gpu->driver.context_release(gpu->device));
    }
    /* The driver's library stays: it has threads of its own. */
    free(gpu);
}

int gpu_device(const struct gpu *gpu)
{
    return gpu->number;
}

void *gpu_stream(const struct gpu *gpu)
{
    return gpu->stream;
}

/* ---- memory ---- */

float *gpu_floats(struct gpu *gpu, size_t count)
{
    check(gpu, "cuMemAlloc", gpu->driver.allocate(&gpu->memory, count * sizeof(float)));
    return (float *)(uintptr_t)gpu->memory;
}

float *gpu_host_floats(struct gpu *gpu, size_t count)
{
    void *memory = NULL;
    check(gpu, "cuMemHostAlloc", gpu->driver.host_allocate(&memory, count * sizeof(float), 0));
    memset(memory, 0, count * sizeof(float));
    return memory;
}

void gpu_host_free(struct gpu *gpu, float *floats)
{
    check(gpu, "cuMemFreeHost", gpu->driver.host_release(floats));
}

/* ---- the stream ---- */

void gpu_copy_in(struct gpu *gpu, float *there, const float *here, size_t count)
{
    device_address address = (uintptr_t)there;
    if (gpu)
        check(gpu, "cuMemcpyHtoDAsync",
              gpu->driver.copy_in(address, here, count * sizeof(float), gpu->stream));
}

void gpu_copy_out(struct gpu *gpu, float *here, const float *there, size_t count)
{
    device_address address = (uintptr_t)there;
    if (gpu)
        check(gpu, "cuMemcpyDtoHAsync",
              gpu->driver.copy_out(here, address, count * sizeof(float), gpu->stream));
}

void gpu_wait(struct gpu *gpu)
{
    if (gpu)
        check(gpu, "cuStreamSynchronize", gpu->driver.stream_wait(gpu->stream));
}
