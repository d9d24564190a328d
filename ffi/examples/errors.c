/* errors.c: what goes wrong, and what a program learns about it. Needs no launcher.
 *
 * A status says what kind of error it is; the text names the offending value. An error in an
 * argument leaves the communicator usable.
 */
#include <stdio.h>

#include <unisono.h>

static void show(const unisono_comm_t *comm, const char *what, int status)
{
    char text[512] = "";
    if (status != UNISONO_OK)
        unisono_last_error(comm, text, sizeof text);
    printf("%-24s %3d %s%s%s\n", what, status, unisono_status_name(status), text[0] ? ": " : "",
           text);
}

int main(void)
{
    unisono_comm_t *comm = NULL;
    float values[2] = {1.0f, 2.0f};

    show(NULL, "a world of 0 ranks", unisono_comm_init_all(&comm, 0, NULL));
    int status = unisono_comm_init_all(&comm, 1, NULL);
    show(NULL, "a world of 1 rank", status);
    if (status != UNISONO_OK)
        return 1;
    show(comm, "a null pointer",
         unisono_all_reduce(NULL, values, 2, UNISONO_F32, UNISONO_SUM, comm));
    show(comm, "no such element type",
         unisono_all_reduce(values, values, 2, 99, UNISONO_SUM, comm));
    show(comm, "no such root", unisono_broadcast(values, values, 2, UNISONO_F32, 7, comm));
    show(comm, "bits of floats",
         unisono_all_reduce(values, values, 2, UNISONO_F32, UNISONO_BAND, comm));
    status = unisono_all_reduce(values, values, 2, UNISONO_F32, UNISONO_SUM, comm);
    show(comm, "and then a good call", status);
    show(NULL, "the end", unisono_comm_destroy(comm));
    return status == UNISONO_OK ? 0 : 1;
}
