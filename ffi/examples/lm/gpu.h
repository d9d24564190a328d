/* gpu.h: memory of a GPU, and a stream in which copies and collective calls follow each other.
 *
 * The CUDA driver is opened at run time: the program links none, and where there is none it goes on
 * in host memory. UNISONO_CUDA_LIB names another driver, for the library too.
 */
#ifndef LM_GPU_H
#define LM_GPU_H

#include <stddef.h>

struct job;
struct gpu;

enum { DEVICE_NONE = -2, DEVICE_AUTO = -1 }; /* or the number of a GPU */

/* Opens GPU number `device`; DEVICE_AUTO: that of this rank's number on its host, counted around.
 * The calling thread has its context from here on. NULL where there is none, and why in `reason`.
 * `job` is for the errors of the calls below: they end the process as job_fail does. */
struct gpu *gpu_open(int device, const struct job *job, char *reason, size_t reason_bytes);

/* Gives back all that it has, but the memory of gpu_host_floats. The communicator must be gone: it
 * and its peers may know the memory. NULL is none. */
void gpu_close(struct gpu *gpu);

int gpu_device(const struct gpu *gpu);

/* For unisono_comm_set_stream. */
void *gpu_stream(const struct gpu *gpu);

/* The GPU's memory: room for `count` floats. Once. */
float *gpu_floats(struct gpu *gpu, size_t count);

/* Zeroed host memory that the GPU copies from and to while the host goes on. */
float *gpu_host_floats(struct gpu *gpu, size_t count);
void gpu_host_free(struct gpu *gpu, float *floats);

/* Copies in the stream: they return at once, and come after what is there before them. Without a
 * GPU (NULL) these and gpu_wait do nothing. */
void gpu_copy_in(struct gpu *gpu, float *there, const float *here, size_t count);
void gpu_copy_out(struct gpu *gpu, float *here, const float *there, size_t count);

/* Waits for all that is in the stream. */
void gpu_wait(struct gpu *gpu);

#endif
