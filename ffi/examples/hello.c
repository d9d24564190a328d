/* hello.c: the smallest program: every rank adds its part to a vector.
 *
 *   cc hello.c $(pkg-config --cflags --libs --static unisono) -o hello
 *   unisono run -n 2 -- ./hello
 */
#include <stdio.h>
#include <unisono.h>

int main(void)
{
    unisono_comm_t *comm = NULL;
    int rank = 0, world = 0;
    int status = unisono_comm_init_env(&comm, NULL); /* the launcher says which rank this is */
    if (status == UNISONO_OK)
        status = unisono_comm_rank(comm, &rank);
    if (status == UNISONO_OK)
        status = unisono_comm_world_size(comm, &world);

    float values[3] = {1.0f, (float)rank, 0.5f};
    if (status == UNISONO_OK)
        status = unisono_all_reduce(values, values, 3, UNISONO_F32, UNISONO_SUM, comm);
    if (status != UNISONO_OK) {
        char text[512];
        unisono_last_error(comm, text, sizeof text);
        fprintf(stderr, "%s: %s\n", unisono_status_name(status), text);
        return 1;
    }
    printf("rank %d of %d: %g %g %g\n", rank, world, values[0], values[1], values[2]);
    return unisono_comm_destroy(comm) == UNISONO_OK ? 0 : 1;
}
