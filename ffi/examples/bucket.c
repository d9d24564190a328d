/* bucket.c: several all-reduces in flight at once, used in the order in which they complete.
 *
 * A training step sends its gradients in buckets like this one's: the next bucket is computed while
 * the ones before it travel. lm/ and train_lm.c show it in a real program.
 *
 *   unisono run -n 2 -- ./bucket
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <unisono.h>

#define BUCKETS 4
#define COUNT ((size_t)1 << 16) /* elements in a bucket */

static void check(const unisono_comm_t *comm, const char *call, int status)
{
    char text[512];
    if (status == UNISONO_OK)
        return;
    unisono_last_error(comm, text, sizeof text);
    fprintf(stderr, "%s: %s: %s\n", call, unisono_status_name(status), text);
    exit(1);
}

/* What every element of the bucket must be: the sum over the ranks of rank + bucket. */
static float expected(size_t bucket, int world)
{
    return (float)(world * (world - 1) / 2 + world * (int)bucket);
}

int main(void)
{
    unisono_comm_t *comm = NULL;
    unisono_request_t *requests[BUCKETS] = {NULL};
    void *memory = NULL;
    int rank = 0, world = 0, wrong = 0;

    check(NULL, "unisono_comm_init_env", unisono_comm_init_env(&comm, NULL));
    check(comm, "unisono_comm_rank", unisono_comm_rank(comm, &rank));
    check(comm, "unisono_comm_world_size", unisono_comm_world_size(comm, &world));
    check(comm, "unisono_mem_alloc",
          unisono_mem_alloc(comm, BUCKETS * COUNT * sizeof(float), &memory));

    float *gradient = memory;
    for (size_t b = 0; b < BUCKETS; b++) {
        float *bucket = gradient + b * COUNT;
        for (size_t i = 0; i < COUNT; i++) /* stands for the backward pass */
            bucket[i] = (float)rank + (float)b;
        check(comm, "unisono_iall_reduce",
              unisono_iall_reduce(bucket, bucket, COUNT, UNISONO_F32, UNISONO_SUM, comm,
                                  &requests[b]));
        /* The library has the bucket now; it is not to be touched before its request completes. */
    }
    for (int done = 0; done < BUCKETS; done++) {
        size_t b = 0;
        check(comm, "unisono_wait_any", unisono_wait_any(requests, BUCKETS, -1, &b));
        for (size_t i = 0; i < COUNT; i++)
            wrong += gradient[b * COUNT + i] != expected(b, world);
    }
    printf("rank %d of %d: %d buckets, %d wrong elements\n", rank, world, BUCKETS, wrong);

    check(comm, "unisono_mem_free", unisono_mem_free(comm, memory));
    check(NULL, "unisono_comm_destroy", unisono_comm_destroy(comm));
    return wrong ? 1 : 0;
}
