// A stand-in for libibverbs and librdmacm: reliable connected RDMA without a device, for tests on
// machines that have none. One library is both.
//
// A device is a thread in each process, its card. It takes requests from send queues some time
// after they are posted, reads their source then, and sends packets over a Unix socket, one for
// each connection. The card at the other end checks keys, bounds and access, copies, and
// acknowledges; only then the request has completed. So what goes wrong on hardware goes wrong
// here:
//
//   - A source that changes before its request has completed is read as it is then.
//   - Slots of queues are free again when a completion is polled that says so; a queue that is full
//     gives ENOMEM, a completion queue that is full is lost, and its queue pairs with it.
//   - A key that is wrong, or memory that is registered no more, ends both queue pairs.
//   - A message without a receive waits, or ends the sender, as rnr_retry of its peer says.
//   - A completion in error has rubbish in all but the fields that mean something.
//   - What has been taken from a channel of events must be acknowledged before its object ends.
//
// Other than on hardware a process that is stopped does not answer, a peer that has died is known
// at once, and memory must stay mapped while it is registered.
//
//   STANDIN_RDMA_DEVICES=2          devices, standin0 with address 127.0.0.1 and so on; else one
//   STANDIN_RDMA_NONE=1             no devices, and what libraries say where the kernel has none
//   STANDIN_RDMA_IWARP=1            iWARP: no immediate data, reads into what peers may write
//   STANDIN_RDMA_LOCKED=BYTES       more registered memory than this is ENOMEM
//   STANDIN_RDMA_INLINE=BYTES       the most inline data of a queue pair; else 220
//   STANDIN_RDMA_FAIL=DEVICE:COUNT  the device dies over the request that is posted to it as this
//                                   process's COUNTth: of that the peer has all, some or nothing
//   STANDIN_RDMA_SLOW=DEVICE:MICROSECONDS   each request of the device takes this long
//   STANDIN_RDMA_LATE=MICROSECONDS  of four requests one, if it is not inline, begins as much later
//                                   than it could; else 50
//   STANDIN_RSOCKET_SHORT=BYTES     a call of riowrite takes no more than these, and of two one nothing
//   STANDIN_RDMA_SEED=NUMBER        makes what is left to chance the same each time
//
// The parts build on each other in this order.

#include "cma.h"
#include "rsocket.h"
#include "verbs.h"

#include "rdma/base.h"
#include "rdma/objects.h"
#include "rdma/memory.h"
#include "rdma/complete.h"
#include "rdma/wire.h"
#include "rdma/connect.h"
#include "rdma/card.h"
#include "rdma/api_verbs.h"
#include "rdma/api_cma.h"
#include "rdma/api_rsocket.h"
