/* The ABI of the MPI 5.0 standard, chapter 20, as far as Unisono uses it. Handles are addresses, of
 * which constants use the lowest. A test compares this with the mpi_abi.h of an installation. */
#include <stddef.h>

typedef ptrdiff_t MPI_Aint;
typedef long long MPI_Count;
typedef struct MPI_ABI_Comm *MPI_Comm;
typedef struct MPI_ABI_Group *MPI_Group;
typedef struct MPI_ABI_Datatype *MPI_Datatype;
typedef struct MPI_ABI_Op *MPI_Op;
typedef struct MPI_ABI_Request *MPI_Request;
typedef struct MPI_ABI_Errhandler *MPI_Errhandler;

typedef struct MPI_Status {
    int MPI_SOURCE;
    int MPI_TAG;
    int MPI_ERROR;
    int MPI_internal[5];
} MPI_Status;

typedef void(MPI_User_function)(void *, void *, int *, MPI_Datatype *);

#define UNISONO_COMM_WORLD 0x101
#define UNISONO_COMM_NULL 0x100
#define UNISONO_REQUEST_NULL 0x180
#define UNISONO_ERRORS_RETURN 0x143
#define UNISONO_INT8_T 0x240
#define UNISONO_UINT8_T 0x241
#define UNISONO_INT16_T 0x248
#define UNISONO_UINT16_T 0x249
#define UNISONO_INT32_T 0x250
#define UNISONO_UINT32_T 0x251
#define UNISONO_INT64_T 0x258
#define UNISONO_UINT64_T 0x259
#define UNISONO_FLOAT 0x210
#define UNISONO_DOUBLE 0x214
#define UNISONO_C_FLOAT_COMPLEX 0x212
#define UNISONO_C_DOUBLE_COMPLEX 0x216
#define UNISONO_SUM 0x21
#define UNISONO_PROD 0x24
#define UNISONO_MIN 0x22
#define UNISONO_MAX 0x23
#define UNISONO_BAND 0x28
#define UNISONO_BOR 0x29
#define UNISONO_BXOR 0x2a
#define UNISONO_LAND 0x30
#define UNISONO_LOR 0x31

#define UNISONO_IN_PLACE 1
#define UNISONO_SUCCESS 0
/* None: MPI 5 has no calls for the death of ranks. */
#define UNISONO_FT -1
#define UNISONO_THREAD_SINGLE 0
#define UNISONO_THREAD_FUNNELED 1024
#define UNISONO_THREAD_SERIALIZED 2048
#define UNISONO_THREAD_MULTIPLE 4096

#include "calls.h"
