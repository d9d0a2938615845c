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
    IO_FALLOCATE, /* fallocate of `length` bytes: result 0 */
    IO_SEEK,     /* lseek: result is the offset found; what it does to the descriptor's position is nobody's concern */
    IO_OPS
};

/* The most iovec segments that one io carries: Linux's IOV_MAX (readv(2)). */
#define IO_SEGMENTS_MAX 1024

struct io {
    enum io_op op;
    int fd;                  /* the image's descriptor, borrowed; open until the io is reaped */
    int file;                /* what the driver's attach() returned for fd */
    int64_t offset;          /* bytes */
    int64_t length;          /* FALLOCATE only: bytes */
    int mode;                /* FALLOCATE: as in fallocate(2); SEEK: whence, SEEK_DATA or SEEK_HOLE */
    const struct iovec *iov; /* READ and WRITE only */
    int iovcnt;              /* 1 .. IO_SEGMENTS_MAX */
    int blocks;              /* it would hold up its driver: `threads` does it */
    int64_t result;          /* valid once reaped: bytes (or 0, or an offset), or -errno */
    struct io *next;         /* a link for whoever owns the io */
};

#endif
