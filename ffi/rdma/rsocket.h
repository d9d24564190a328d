/* librdmacm's sockets as far as Unisono uses them (rdma-core, rsocket(7)). A test compares this
 * with the rsocket.h that is installed. */
#ifndef UNISONO_RDMA_RSOCKET_H
#define UNISONO_RDMA_RSOCKET_H

#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Options, most of them before the socket connects: entries of its queues, bytes of inline data,
 * how many mappings a peer may have. */
#define SOL_RDMA 0x10000
enum {
    RDMA_SQSIZE = 0,
    RDMA_RQSIZE = 1,
    RDMA_INLINE = 2,
    RDMA_IOMAPSIZE = 3,
    RDMA_ROUTE = 4
};

int rsocket(int domain, int type, int protocol);
int rbind(int socket, const struct sockaddr *addr, socklen_t bytes);
int rlisten(int socket, int backlog);
int raccept(int socket, struct sockaddr *addr, socklen_t *bytes);
int rconnect(int socket, const struct sockaddr *addr, socklen_t bytes);
int rshutdown(int socket, int how);
int rclose(int socket);

ssize_t rrecv(int socket, void *to, size_t bytes, int flags);
ssize_t rsend(int socket, const void *from, size_t bytes, int flags);
int rpoll(struct pollfd *fds, nfds_t count, int timeout_ms);

int rgetpeername(int socket, struct sockaddr *addr, socklen_t *bytes);
int rgetsockname(int socket, struct sockaddr *addr, socklen_t *bytes);
int rsetsockopt(int socket, int level, int option, const void *value, socklen_t bytes);
int rgetsockopt(int socket, int level, int option, void *value, socklen_t *bytes);
int rfcntl(int socket, int command, ...);

/* Memory that the peer may write to by riowrite, from the offset on that is returned. */
off_t riomap(int socket, void *at, size_t bytes, int protection, int flags, off_t offset);
int riounmap(int socket, void *at, size_t bytes);
size_t riowrite(int socket, const void *from, size_t bytes, off_t offset, int flags);

#ifdef __cplusplus
}
#endif

#endif
