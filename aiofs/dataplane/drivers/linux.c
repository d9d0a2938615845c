/* linux.c -- the driver on Linux's own AIO (io_submit(2), by libaio): one io_submit a batch, completions
 * announced by an eventfd and read from the ring that the kernel shares with the process. Asynchronous
 * for O_DIRECT only: who gives it a buffered descriptor makes submit block.
 *
 * Threads: one (driver.h). The kernel writes the ring's tail, we its head.
 * States of an io: waiting (in `waiting`, not taken by io_submit yet) -> in the kernel -> handed out by
 * reap; or waiting -> refused (io_submit would not have it; its errno is the result) -> handed out.
 * Invariants: waiting + in_kernel == accepted <= depth (a refused io has given its iocb back). When
 * something waits, the kernel has said EAGAIN, and an edge will come, after which reap tries again.
 */
#include <errno.h>
#include <libaio.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "driver.h"
#include "populate.h"

/* The head of the completion ring, at the address that io_setup returns (linux/fs/aio.c, aio_ring). The
 * magic number and incompat_features are there so that a process can check that it understands it. */
#define RING_MAGIC 0xa10a10a1u
struct ring {
    unsigned id;
    unsigned nr; /* number of events */
    _Atomic unsigned head;
    _Atomic unsigned tail;
    unsigned magic;
    unsigned compat_features;
    unsigned incompat_features;
    unsigned header_length;
    struct io_event events[];
};

struct aio {
    io_context_t context;
    struct ring *ring; /* NULL when it is not the ring we know: then io_getevents */
    int event_fd;
    unsigned depth;
    unsigned accepted;
    unsigned in_kernel;
    unsigned waiting;      /* iocbs in the array of that name, from `next` on */
    unsigned next;
    struct io *refused;    /* linked by io->next */
    struct iocb *iocbs;    /* depth of them */
    struct iocb **free;    /* depth - accepted of them */
    struct iocb **pending; /* what waits; room for depth */
};

static void explain(int error, char *why, size_t size)
{
    if (error == -EAGAIN) {
        unsigned long long limit = 0, used = 0;
        FILE *max = fopen("/proc/sys/fs/aio-max-nr", "re"), *nr = fopen("/proc/sys/fs/aio-nr", "re");
        if (max == NULL || fscanf(max, "%llu", &limit) != 1)
            limit = 0;
        if (nr == NULL || fscanf(nr, "%llu", &used) != 1)
            used = 0;
        if (max != NULL)
            fclose(max);
        if (nr != NULL)
            fclose(nr);
        snprintf(why, size, "io_setup: fs.aio-max-nr = %llu is used up (fs.aio-nr = %llu); raise it with sysctl",
                 limit, used);
    } else if (error == -ENOSYS) {
        snprintf(why, size, "io_setup: this kernel has no Linux AIO (CONFIG_AIO)");
    } else if (error == -EPERM) {
        snprintf(why, size, "io_setup: not permitted; a seccomp filter, as of a container, forbids it");
    } else {
        snprintf(why, size, "io_setup: %s", strerror(-error));
    }
}

/* A context that the kernel makes, cannot tell us of, and takes back (io_setup in linux/fs/aio.c): to io_destroy one waits
 * until every core has passed through the scheduler, 30 ms of the 400 that a mount takes. */
static int linux_probe(char *why, size_t size)
{
    static const io_context_t unwritable = NULL;
    int error = io_setup(1, (io_context_t *)(uintptr_t)&unwritable);
    if (error == -EFAULT)
        return 0;
    explain(error, why, size);
    return error;
}

static void linux_close(struct aio *aio)
{
    if (aio->context != NULL)
        io_destroy(aio->context);
    if (aio->event_fd >= 0)
        close(aio->event_fd);
    free(aio->iocbs);
    free(aio->free);
    free(aio->pending);
    free(aio);
}

static int linux_open(struct aio **out, unsigned depth)
{
    struct aio *aio = populated_calloc(1, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    aio->depth = depth;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = aio->event_fd < 0 ? -errno : 0;
    aio->iocbs = populated_calloc(depth, sizeof *aio->iocbs);
    aio->free = populated_calloc(depth, sizeof(struct iocb *));
    aio->pending = populated_calloc(depth, sizeof(struct iocb *));
    if (aio->iocbs == NULL || aio->free == NULL || aio->pending == NULL)
        error = -ENOMEM;
    if (error == 0)
        error = io_setup((int)depth, &aio->context);
    if (error < 0) {
        linux_close(aio);
        return error;
    }
    for (unsigned i = 0; i < depth; i++)
        aio->free[i] = &aio->iocbs[depth - 1 - i];
    struct ring *ring = (struct ring *)aio->context;
    if (ring->magic == RING_MAGIC && ring->incompat_features == 0) {
        aio->ring = ring;
        populate(ring, sizeof *ring + ring->nr * sizeof *ring->events);
    }
    *out = aio;
    return 0;
}

static int linux_attach(struct aio *aio, int fd)
{
    (void)aio;
    (void)fd;
    return 0;
}

static void linux_detach(struct aio *aio, int file)
{
    (void)aio;
    (void)file;
}

static void prepare(struct iocb *iocb, struct io *io, int event_fd)
{
    const struct iovec *one = io->iov;
    /* One segment needs no iovec to be copied in and checked. */
    if (io->op == IO_READ && io->iovcnt == 1)
        io_prep_pread(iocb, io->fd, one->iov_base, one->iov_len, io->offset);
    else if (io->op == IO_READ)
        io_prep_preadv(iocb, io->fd, io->iov, io->iovcnt, io->offset);
    else if (io->iovcnt == 1)
        io_prep_pwrite(iocb, io->fd, one->iov_base, one->iov_len, io->offset);
    else
        io_prep_pwritev(iocb, io->fd, io->iov, io->iovcnt, io->offset);
    io_set_eventfd(iocb, event_fd);
    iocb->data = io; /* after io_prep_*, which clears it */
}

/* The kernel will not have the first waiting iocb: that is its result, and the others go on. */
static void refuse_first(struct aio *aio, int error)
{
    struct iocb *iocb = aio->pending[aio->next++];
    struct io *io = iocb->data;
    aio->waiting--;
    aio->free[aio->depth - aio->accepted--] = iocb;
    io->result = error;
    io->next = aio->refused;
    aio->refused = io;
    (void)eventfd_write(aio->event_fd, 1);
}

/* Hand what waits to the kernel, in one call unless it takes less. */
static void push(struct aio *aio)
{
    while (aio->waiting > 0) {
        int taken = io_submit(aio->context, (long)aio->waiting, aio->pending + aio->next);
        if (taken > 0) {
            aio->next += (unsigned)taken;
            aio->waiting -= (unsigned)taken;
            aio->in_kernel += (unsigned)taken;
        } else if (taken == -EAGAIN) {
            /* Kept, for the reap after the next completion; with none to come, for the next reap. */
            if (aio->in_kernel == 0)
                (void)eventfd_write(aio->event_fd, 1);
            return;
        } else if (taken != -EINTR) {
            refuse_first(aio, taken == 0 ? -EIO : taken);
        }
    }
}

static int linux_submit(struct aio *aio, struct io *const *ios, int n)
{
    /* What waits moves to the front, so that the array never needs to wrap. */
    if (aio->next > 0 && aio->waiting > 0)
        memmove(aio->pending, aio->pending + aio->next, aio->waiting * sizeof(struct iocb *));
    aio->next = 0;
    int taken = 0;
    while (taken < n && aio->accepted < aio->depth) {
        struct iocb *iocb = aio->free[aio->depth - 1 - aio->accepted];
        aio->accepted++;
        prepare(iocb, ios[taken++], aio->event_fd);
        aio->pending[aio->waiting++] = iocb;
    }
    push(aio);
    return taken;
}

static int linux_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

static struct io *completed(struct aio *aio, const struct io_event *event)
{
    struct io *io = event->data;
    /* res carries a signed number in an unsigned field. */
    io->result = (int64_t)(long)event->res;
    aio->in_kernel--;
    aio->free[aio->depth - aio->accepted--] = event->obj;
    return io;
}

/* Reading the shared ring costs no system call, where io_getevents costs one. */
static int reap_ring(struct aio *aio, struct io **out, int max)
{
    struct ring *ring = aio->ring;
    unsigned head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    unsigned tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    int n = 0;
    while (n < max && head != tail) {
        out[n++] = completed(aio, &ring->events[head]);
        head = head + 1 == ring->nr ? 0 : head + 1;
    }
    if (n > 0)
        atomic_store_explicit(&ring->head, head, memory_order_release);
    return n;
}

static int reap_call(struct aio *aio, struct io **out, int max)
{
    struct io_event events[64];
    struct timespec none = {0, 0};
    int n = 0;
    while (n < max) {
        int want = max - n < 64 ? max - n : 64;
        int got = io_getevents(aio->context, 0, want, events, &none);
        for (int i = 0; i < got; i++)
            out[n++] = completed(aio, &events[i]);
        if (got < want)
            break;
    }
    return n;
}

static int linux_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    while (n < max && aio->refused != NULL) {
        out[n++] = aio->refused;
        aio->refused = aio->refused->next;
    }
    if (n < max && aio->in_kernel > 0)
        n += aio->ring != NULL ? reap_ring(aio, out + n, max - n) : reap_call(aio, out + n, max - n);
    if (aio->waiting > 0)
        push(aio);
    return n;
}

const struct driver driver_linux = {
    .name = "linux",
    .description = "Linux AIO (io_submit): asynchronous for O_DIRECT descriptors",
    /* IOCB_CMD_FDSYNC exists since 4.18, but an older kernel says so only in the middle of a batch;
     * `threads` can always do it. */
    .operations = 1u << IO_READ | 1u << IO_WRITE,
    .probe = linux_probe,
    .open = linux_open,
    .attach = linux_attach,
    .detach = linux_detach,
    .submit = linux_submit,
    .event_fd = linux_event_fd,
    .reap = linux_reap,
    .cancel = NULL, /* no file system implements io_cancel */
    .close = linux_close,
};
