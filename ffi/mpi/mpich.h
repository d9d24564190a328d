/* The ABI that MPICH, Intel MPI, MVAPICH and Cray MPICH share (https://www.mpich.org/abi), as far as
 * Unisono uses it. Handles are numbers. A test compares this with the mpi.h of an installation. */
#include <stddef.h>

typedef long MPI_Aint;
typedef long long MPI_Count;
typedef int MPI_Comm;
typedef int MPI_Group;
typedef int MPI_Datatype;
typedef int MPI_Op;
typedef int MPI_Request;
typedef int MPI_Errhandler;

typedef struct MPI_Status {
    int count_lo;
    int count_hi_and_cancelled;
    int MPI_SOURCE;
    int MPI_TAG;
    int MPI_ERROR;
} MPI_Status;

typedef void(MPI_User_function)(void *, void *, int *, MPI_Datatype *);

#define UNISONO_COMM_WORLD 0x44000000
#define UNISONO_COMM_NULL 0x4000000
#define UNISONO_REQUEST_NULL 0x2c000000
#define UNISONO_ERRORS_RETURN 0x54000001
#define UNISONO_INT8_T 0x4c000137
#define UNISONO_UINT8_T 0x4c00013b
#define UNISONO_INT16_T 0x4c000238
#define UNISONO_UINT16_T 0x4c00023c
#define UNISONO_INT32_T 0x4c000439
#define UNISONO_UINT32_T 0x4c00043d
#define UNISONO_INT64_T 0x4c00083a
#define UNISONO_UINT64_T 0x4c00083e
#define UNISONO_FLOAT 0x4c00040a
#define UNISONO_DOUBLE 0x4c00080b
#define UNISONO_C_FLOAT_COMPLEX 0x4c000840
#define UNISONO_C_DOUBLE_COMPLEX 0x4c001041
#define UNISONO_SUM 0x58000003
#define UNISONO_PROD 0x58000004
#define UNISONO_MIN 0x58000002
#define UNISONO_MAX 0x58000001
#define UNISONO_BAND 0x58000006
#define UNISONO_BOR 0x58000008
#define UNISONO_BXOR 0x5800000a
#define UNISONO_LAND 0x58000005
#define UNISONO_LOR 0x58000007

#define UNISONO_IN_PLACE -1
#define UNISONO_SUCCESS 0
/* None. MPICH 5 has MPIX_Comm_shrink, but its MPIX_Comm_revoke ends the process. */
#define UNISONO_FT -1
#define UNISONO_THREAD_SINGLE 0
#define UNISONO_THREAD_FUNNELED 1
#define UNISONO_THREAD_SERIALIZED 2
#define UNISONO_THREAD_MULTIPLE 3

#include "calls.h"
