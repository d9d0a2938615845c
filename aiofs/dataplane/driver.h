/* driver.h -- the contract of a driver: one way to do asynchronous I/O on Linux.
 *
 * A driver does what it is told, once, and reports what the kernel said. It knows nothing of FUSE,
 * and it never retries, logs, zero-fills, splits or exits: short counts, end of file, EINTR and EAGAIN
 * in a result are the caller's to decide about.
 *
 * Threads: everything of one instance, open() to close(), is called by one thread.
 * Results: >= 0, or -errno.
 * Life:    probe ... open -> attach -> (submit | reap | cancel)* -> detach -> close
 *
 * To add a driver: copy drivers/sync.c, fill in the struct at its end, and put it in the table in
 * drivers/drivers.c; then its double with faults, by a line at the end of drivers/fault.c. The contract
 * suite (tests/parts/test_driver_contract.py) runs over both.
 */
#ifndef AIOFS_DRIVER_H
#define AIOFS_DRIVER_H

#include <stddef.h>
#include "io.h"

/* In `operations`: takes ios that are marked `blocks` as well. */
#define OPERATION_BLOCKING (1u << IO_OPS)
#define OPERATIONS_ALL (OPERATION_BLOCKING | (OPERATION_BLOCKING - 1))

/* Descriptors that submit_and_wait heeds. */
#define WAIT_FDS 4

struct aio; /* one open instance; each driver defines its own and casts */

struct driver {
    const char *name;
    const char *description; /* one line, for people */
    unsigned operations;     /* bit (1u << op) for each io_op it can do, and OPERATION_BLOCKING */

    /* Can this machine run it? 0, or -errno with a sentence for people in why[size] that names the
     * cause and, where there is one, the way out. Leaves nothing behind. Any thread. */
    int (*probe)(char *why, size_t size);

    /* A new instance that can hold `depth` (1 .. 8192) accepted and not yet reaped ios. Allocates all
     * it will ever need. 0 and *out, or -errno and *out untouched. */
    int (*open)(struct aio **out, unsigned depth);

    /* Announce a descriptor before the first io on it; returns the `file` that those ios carry. */
    int (*attach)(struct aio *aio, int fd);

    /* No io of this file is in flight and none will come. */
    void (*detach)(struct aio *aio, int file);

    /* Take ios[0..n) in order, as one batch. Returns how many were accepted, always a prefix; fewer
     * than n means full, and the caller keeps the rest. An io that the kernel refuses is accepted and
     * comes back from reap with the error. Does not block (sync excepted). */
    int (*submit)(struct aio *aio, struct io *const *ios, int n);

    /* Optional (NULL): take one io, when none is in flight, and sleep until it may be reaped or one of fds[0 .. WAIT_FDS)
     * can be read, in one system call. The fds are the same ones at every call. Returns a mask of those that can be (bit n: fds[n]); it may
     * be 0 before anything has happened. -1: the io was not taken, submit it. */
    int (*submit_and_wait)(struct aio *aio, struct io *io, const int *fds);

    /* A descriptor for an EDGE-triggered epoll (EPOLLIN | EPOLLET): an edge follows the first completion
     * after a reap that returned fewer than max (or after open); a driver may give more edges than that.
     * Nobody reads it. To sleep safely: reap until fewer than max come back, then wait. */
    int (*event_fd)(struct aio *aio);

    /* Collect up to max finished ios; each accepted io comes back from reap or cancel exactly once, its
     * result set. Never blocks; 0 when none has finished. */
    int (*reap)(struct aio *aio, struct io **out, int max);

    /* Take back an accepted io that has not been started: 0, and the io is the caller's again and will
     * not be reaped; -EALREADY when it has been started or has finished (reap will return it). NULL for
     * a driver whose ios are all started by submit. */
    int (*cancel)(struct aio *aio, struct io *io);

    /* Nothing is in flight. Frees everything. */
    void (*close)(struct aio *aio);
};

/* drivers/drivers.c: the table, in the order in which `aiofs drivers` shows it. */
extern const struct driver *const aiofs_driver_table[];
extern const int aiofs_driver_table_count;
extern const int aiofs_driver_listed_count; /* the first so many are for users; fault:NAME of each follow */
const struct driver *driver_by_name(const char *name); /* NULL when there is none */

extern const struct driver driver_io_uring;
extern const struct driver driver_linux;
extern const struct driver driver_threads;
extern const struct driver driver_posix;
extern const struct driver driver_sync;
extern const struct driver driver_fault_io_uring;
extern const struct driver driver_fault_linux;
extern const struct driver driver_fault_threads;
extern const struct driver driver_fault_posix;
extern const struct driver driver_fault_sync;

/* drivers/sync.c: do one io in place, blocking; its result. Any thread. */
int64_t io_perform(const struct io *io);

#endif
