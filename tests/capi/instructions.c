/* Two ranks in one thread, so that what they execute is the same in every run.
 *
 * usage: instructions COUNT CALLS
 *
 * Every call of COUNT floats is a request on both ranks, which are driven in turn until it has
 * ended. Where a call ends with the second rank's, another follows whose second half is blocking. */
#include "harness.h"

static float *buffers[4];
static unisono_comm_t *comms[2];

static void request(int rank, uint64_t count, unisono_request_t **request)
{
    OK(unisono_iall_reduce(buffers[rank], buffers[2 + rank], count, UNISONO_F32, UNISONO_SUM,
                           comms[rank], request));
}

static void call(uint64_t count)
{
    unisono_request_t *requests[2];
    int ended[2] = {0, 0};
    request(0, count, &requests[0]);
    request(1, count, &requests[1]);
    while (!ended[0] || !ended[1]) {
        for (int rank = 0; rank < 2; rank++) {
            if (!ended[rank])
                OK(unisono_test(&requests[rank], &ended[rank]));
        }
    }
    if (count > 2)
        return;
    request(0, count, &requests[0]);
    OK(unisono_all_reduce(buffers[1], buffers[3], count, UNISONO_F32, UNISONO_SUM, comms[1]));
    OK(unisono_wait(&requests[0], -1));
}

int main(int argc, char **argv)
{
    unisono_config_t config = UNISONO_CONFIG_INIT;
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 2;
    long calls = argc > 2 ? strtol(argv[2], NULL, 10) : 1;
    config.progress_thread = 0;
    OK(unisono_comm_init_all(comms, 2, &config));
    for (int i = 0; i < 4; i++)
        buffers[i] = calloc(count, sizeof(float));
    while (calls-- > 0)
        call(count);
    for (int i = 0; i < 4; i++)
        free(buffers[i]);
    for (int rank = 0; rank < 2; rank++)
        OK(unisono_comm_destroy(comms[rank]));
    return harness_wrong != 0;
}
