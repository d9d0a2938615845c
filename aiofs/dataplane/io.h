/* io.h -- one operation on one image: the currency between the loop, the queue and the drivers.
 *
 * Knows nothing of FUSE, of requests or of Python. An io belongs to exactly one party at a time: to
 * the caller until a submit accepts it, to the queue or driver until a reap returns it, then to the
 * caller again. While the driver owns it, its iovec and its buffers stay where they are.
 */
#ifndef AIOFS_IO_H
#define AIOFS_IO_H

#include <stdint.h>
#include <sys/uio.h>

enum io_op {
    IO_READ,     /* preadv: result is bytes, 0 at end of file */
    IO_WRITE,    /* pwritev: result is bytes */
    IO_FSYNC,    /* fdatasync: result 0 */
    IO_TRUNCATE, /* ftruncate to `offset` bytes: result 0 */
    IO_OPS
};

/* The most iovec segments that one io carries: Linux's IOV_MAX (readv(2)). */
#define IO_SEGMENTS_MAX 1024

struct io {
    enum io_op op;
    int fd;                  /* the image's descriptor, borrowed; open until the io is reaped */
    int file;                /* what the driver's attach() returned for fd */
    int64_t offset;          /* bytes */
    const struct iovec *iov; /* READ and WRITE only */
    int iovcnt;              /* 1 .. IO_SEGMENTS_MAX */
    int64_t result;          /* valid once reaped: bytes (or 0), or -errno */
    struct io *next;         /* a link for whoever owns the io */
};

#endif
