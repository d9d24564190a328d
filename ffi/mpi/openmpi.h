/* The ABI of Open MPI 4 and 5, as far as Unisono uses it. Handles are addresses of the library's own
 * variables, so that constants are names. A test compares this with the mpi.h of an installation. */
#include <stddef.h>

typedef ptrdiff_t MPI_Aint;
typedef long long MPI_Count;
typedef struct ompi_communicator_t *MPI_Comm;
typedef struct ompi_group_t *MPI_Group;
typedef struct ompi_datatype_t *MPI_Datatype;
typedef struct ompi_op_t *MPI_Op;
typedef struct ompi_request_t *MPI_Request;
typedef struct ompi_errhandler_t *MPI_Errhandler;

typedef struct MPI_Status {
    int MPI_SOURCE;
    int MPI_TAG;
    int MPI_ERROR;
    int _cancelled;
    size_t _ucount;
} MPI_Status;

typedef void(MPI_User_function)(void *, void *, int *, MPI_Datatype *);

#define UNISONO_COMM_WORLD "ompi_mpi_comm_world"
#define UNISONO_COMM_NULL "ompi_mpi_comm_null"
#define UNISONO_REQUEST_NULL "ompi_request_null"
#define UNISONO_ERRORS_RETURN "ompi_mpi_errors_return"
#define UNISONO_INT8_T "ompi_mpi_int8_t"
#define UNISONO_UINT8_T "ompi_mpi_uint8_t"
#define UNISONO_INT16_T "ompi_mpi_int16_t"
#define UNISONO_UINT16_T "ompi_mpi_uint16_t"
#define UNISONO_INT32_T "ompi_mpi_int32_t"
#define UNISONO_UINT32_T "ompi_mpi_uint32_t"
#define UNISONO_INT64_T "ompi_mpi_int64_t"
#define UNISONO_UINT64_T "ompi_mpi_uint64_t"
#define UNISONO_FLOAT "ompi_mpi_float"
#define UNISONO_DOUBLE "ompi_mpi_double"
#define UNISONO_C_FLOAT_COMPLEX "ompi_mpi_c_float_complex"
#define UNISONO_C_DOUBLE_COMPLEX "ompi_mpi_c_double_complex"
#define UNISONO_SUM "ompi_mpi_op_sum"
#define UNISONO_PROD "ompi_mpi_op_prod"
#define UNISONO_MIN "ompi_mpi_op_min"
#define UNISONO_MAX "ompi_mpi_op_max"
#define UNISONO_BAND "ompi_mpi_op_band"
#define UNISONO_BOR "ompi_mpi_op_bor"
#define UNISONO_BXOR "ompi_mpi_op_bxor"
#define UNISONO_LAND "ompi_mpi_op_land"
#define UNISONO_LOR "ompi_mpi_op_lor"

#define UNISONO_IN_PLACE 1
#define UNISONO_SUCCESS 0
/* Since version 5: the attribute of MPI_COMM_WORLD that says whether it goes on when ranks die. */
#define UNISONO_FT 12
#define UNISONO_THREAD_SINGLE 0
#define UNISONO_THREAD_FUNNELED 1
#define UNISONO_THREAD_SERIALIZED 2
#define UNISONO_THREAD_MULTIPLE 3

#include "calls.h"
