/* sync.c -- the driver that is no asynchronous I/O at all: each io is done in place, by the thread that
 * submits it. It always works, it is the baseline the others are measured against, and it is the model:
 * to write a new driver, copy this file.
 *
 * Threads: one (driver.h).
 * States of an io: done by submit, listed in `done` -> handed out by reap.
 * Invariants: `done` is in the order of submission; listed <= depth; the eventfd has been written since
 * `done` was last empty, unless it is empty now.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "driver.h"

struct aio {
    int event_fd;
    unsigned depth;
    unsigned listed;  /* ios in the list below */
    struct io *first; /* done, not yet reaped; linked by io->next */
    struct io **last; /* where the next one is hung */
};

static int sync_probe(char *why, size_t size)
{
    (void)why;
    (void)size;
    return 0;
}

static int sync_open(struct aio **out, unsigned depth)
{
    struct aio *aio = calloc(1, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->event_fd < 0) {
        int error = -errno;
        free(aio);
        return error;
    }
    aio->depth = depth;
    aio->last = &aio->first;
    *out = aio;
    return 0;
}

/* The descriptor itself is all that preadv needs, so there is nothing to announce. */
static int sync_attach(struct aio *aio, int fd)
{
    (void)aio;
    (void)fd;
    return 0;
}

static void sync_detach(struct aio *aio, int file)
{
    (void)aio;
    (void)file;
}

int64_t io_perform(const struct io *io)
{
    int64_t result = -EINVAL;
    switch (io->op) {
    case IO_READ:
        result = preadv(io->fd, io->iov, io->iovcnt, io->offset);
        break;
    case IO_WRITE:
        result = pwritev(io->fd, io->iov, io->iovcnt, io->offset);
        break;
    case IO_FSYNC:
        result = fdatasync(io->fd);
        break;
    case IO_TRUNCATE:
        result = ftruncate(io->fd, io->offset);
        break;
    case IO_FALLOCATE:
        result = fallocate(io->fd, io->mode, io->offset, io->length);
        break;
    case IO_SEEK:
        result = lseek(io->fd, io->offset, io->mode);
        break;
    case IO_OPS:
        return result;
    }
    return result < 0 ? -errno : result;
}

static int sync_submit(struct aio *aio, struct io *const *ios, int n)
{
    unsigned before = aio->listed;
    int accepted = 0;
    while (accepted < n && aio->listed < aio->depth) {
        struct io *io = ios[accepted++];
        io->result = io_perform(io);
        io->next = NULL;
        *aio->last = io;
        aio->last = &io->next;
        aio->listed++;
    }
    /* One edge a batch, and none while an earlier one is still to be answered by a reap: who sleeps has
     * reaped until the list was empty. */
    if (before == 0 && accepted > 0)
        (void)eventfd_write(aio->event_fd, 1);
    return accepted;
}

static int sync_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

static int sync_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    while (n < max && aio->first != NULL) {
        out[n++] = aio->first;
        aio->first = aio->first->next;
    }
    if (aio->first == NULL)
        aio->last = &aio->first;
    aio->listed -= (unsigned)n;
    return n;
}

static void sync_close(struct aio *aio)
{
    close(aio->event_fd);
    free(aio);
}

const struct driver driver_sync = {
    .name = "sync",
    .description = "preadv and pwritev in place: no asynchronous I/O, the baseline",
    .operations = (1u << IO_OPS) - 1,
    .probe = sync_probe,
    .open = sync_open,
    .attach = sync_attach,
    .detach = sync_detach,
    .submit = sync_submit,
    .event_fd = sync_event_fd,
    .reap = sync_reap,
    .cancel = NULL, /* submit has done it */
    .close = sync_close,
};
