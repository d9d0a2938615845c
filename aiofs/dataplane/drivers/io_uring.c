/* io_uring.c -- the driver on io_uring (liburing): one io_uring_enter a batch, completions read from the
 * shared ring, files registered so that the kernel need not look each of them up.
 *
 * Threads: one; it is the ring's single issuer (IORING_SETUP_SINGLE_ISSUER).
 * States of an io: in the submission ring -> consumed by the kernel -> handed out by reap; or, when the
 * kernel refuses the submission itself, refused -> handed out by reap.
 * Edges: with IORING_SETUP_DEFER_TASKRUN a completion is only noted by the interrupt; it becomes an entry
 * of the completion ring when this thread enters the kernel. The ring's own descriptor then gives no
 * edge to an edge-triggered epoll (tried on 6.18: 20 of 20 waits of 500 ms saw none); a registered eventfd does. It
 * would also ring for every entry that our own enter posts, so it is armed, by clearing
 * IORING_CQ_EVENTFD_DISABLED, only at the end of a reap that returned fewer than max, and disarmed by
 * the next call that enters the kernel to collect.
 * Polls: submit_and_wait sleeps in the ring, which then polls the caller's descriptors as well. A poll stays when its
 * descriptor could not be read in that time. Each thing that happens there then sends us into the kernel to look, so when others
 * submit for a while, the polls are removed.
 * Memory: what submitting takes of the kernel's memory is taken by the caller's thread, which must not wait for
 * any (populate.h). So all requests of the kernel are allocated at open; it keeps them for the ring's life.
 * What would block is done by the kernel's workers, and those are created in the caller's thread, too, and end when
 * they have been idle for 5 s, all but one. So there is one, from the beginning: it only starts the I/O of O_DIRECT
 * files, and what starting one waits for (the allocation of blocks) is done one after another anyway. FSYNC and
 * FALLOCATE, which would keep it for long, are not among the operations here. A buffered file, whose I/O
 * the worker does from beginning to end, gets the ring as many workers as the kernel thinks right.
 * Invariants: in_flight <= depth, and with the polls and their removal <= entries of the submission ring, so there is always an
 * SQE and the completion ring, twice as long, does not overflow. Entries that the kernel has not consumed (EAGAIN,
 * EBUSY) stay in the submission ring; every submit and reap tries again.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "driver.h"
#include "populate.h"
#include "ring.h"

/* Registered files at most; descriptors beyond it are used as they are. */
#define SLOTS_MAX 4096u

/* What one read or write moves at most (MAX_RW_COUNT, read(2)); more gives a short count. */
#define BYTES_MAX 0x7ffff000u

struct aio {
    struct io_uring ring;
    int event_fd;
    unsigned depth;
    unsigned in_flight;
    struct io *refused; /* linked by io->next */
    unsigned slots;     /* registered files: file < slots is one of them, file == slots is a plain fd */
    unsigned slots_free;
    int free[SLOTS_MAX];
    unsigned workers; /* the kernel's limit on its workers, when we have lowered it */
    unsigned polled, readable; /* bit n: fds[n] of submit_and_wait is being polled, can be read */
    unsigned unused;           /* submits since a poll was of use */
};

/* The user_data of entries that are no io's: 1 + n, the poll of fds[n], and its removal. */
#define NOTE_REMOVED (1 + WAIT_FDS)

/* A poll is removed after so many submits that were not submit_and_wait. */
#define UNUSED_MAX 64

static int disabled_by_sysctl(void)
{
    int value = 0;
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
    if (file == NULL)
        return 0; /* kernels before 6.6 have no such switch */
    if (fscanf(file, "%d", &value) != 1)
        value = 0;
    fclose(file);
    return value;
}

static void explain(int error, char *why, size_t size)
{
    int disabled = disabled_by_sysctl();
    if (error == -EPERM && disabled == 2)
        snprintf(why, size, "kernel.io_uring_disabled = 2 forbids io_uring; set it to 0 with sysctl");
    else if (error == -EPERM && disabled == 1)
        snprintf(why, size,
                 "kernel.io_uring_disabled = 1 forbids io_uring to this user; set it to 0 with sysctl, "
                 "or join the group kernel.io_uring_group names");
    else if (error == -EPERM)
        snprintf(why, size, "io_uring_setup: not permitted; a seccomp filter, as of a container, forbids it");
    else if (error == -ENOSYS)
        snprintf(why, size, "this kernel has no io_uring; it needs Linux 5.6 with CONFIG_IO_URING");
    else if (error == -ENOMEM)
        snprintf(why, size, "io_uring_setup: out of memory it may lock; raise RLIMIT_MEMLOCK (ulimit -l)");
    else
        snprintf(why, size, "io_uring_setup: %s", strerror(-error));
}

static int uring_probe(char *why, size_t size)
{
    static const int needed[] = {IORING_OP_READ, IORING_OP_READV, IORING_OP_WRITE, IORING_OP_WRITEV};
    struct io_uring ring;
    int error = ring_open(&ring, 4);
    if (error < 0) {
        explain(error, why, size);
        return error;
    }
    struct io_uring_probe *probe = io_uring_get_probe_ring(&ring);
    for (size_t i = 0; error == 0 && i < sizeof needed / sizeof *needed; i++)
        if (probe == NULL || !io_uring_opcode_supported(probe, needed[i]))
            error = -EOPNOTSUPP;
    if (error < 0)
        snprintf(why, size, "this kernel's io_uring lacks operations aiofs needs; Linux 5.6 has them");
    if (probe != NULL)
        io_uring_free_probe(probe);
    io_uring_queue_exit(&ring);
    return error;
}

/* A table of files, all empty. A kernel that has none of it (before 5.19), or refuses, leaves slots 0. */
static void register_table(struct aio *aio)
{
    struct rlimit limit;
    unsigned slots = SLOTS_MAX;
    /* The kernel refuses a table longer than RLIMIT_NOFILE. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < slots)
        slots = (unsigned)limit.rlim_cur;
    if (io_uring_register_files_sparse(&aio->ring, slots) < 0)
        return;
    aio->slots = slots;
    aio->slots_free = slots;
    for (unsigned i = 0; i < slots; i++)
        aio->free[i] = (int)(slots - 1 - i);
}

/* As many operations at once as there can ever be. One is for a worker, which stays. */
static int allocate(struct aio *aio)
{
    unsigned limits[2] = {1, 0}; /* for files and block devices; for others: as it is */
    if (io_uring_register_iowq_max_workers(&aio->ring, limits) == 0) /* Linux 5.15 */
        aio->workers = limits[0];
    return ring_warm(&aio->ring, aio->depth + 2 * WAIT_FDS, true);
}

static int uring_open(struct aio **out, unsigned depth)
{
    struct aio *aio = populated_calloc(1, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    aio->depth = depth;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->event_fd < 0) {
        int error = -errno;
        free(aio);
        return error;
    }
    int error = ring_open(&aio->ring, depth + 2 * WAIT_FDS);
    if (error == 0) {
        error = io_uring_register_eventfd(&aio->ring, aio->event_fd);
        if (error == 0)
            error = allocate(aio);
        if (error < 0)
            io_uring_queue_exit(&aio->ring);
    }
    if (error < 0) {
        close(aio->event_fd);
        free(aio);
        return error;
    }
    register_table(aio);
    *out = aio;
    return 0;
}

/* The first buffered file lifts the limit on workers. */
static void heed_buffered(struct aio *aio, int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (aio->workers == 0 || (flags >= 0 && (flags & O_DIRECT) != 0))
        return;
    (void)io_uring_register_iowq_max_workers(&aio->ring, (unsigned[2]){aio->workers, 0});
    aio->workers = 0;
}

static int uring_attach(struct aio *aio, int fd)
{
    heed_buffered(aio, fd);
    if (aio->slots_free == 0)
        return (int)aio->slots;
    int slot = aio->free[aio->slots_free - 1];
    if (io_uring_register_files_update(&aio->ring, (unsigned)slot, &fd, 1) != 1)
        return (int)aio->slots;
    aio->slots_free--;
    return slot;
}

static void uring_detach(struct aio *aio, int file)
{
    if (file >= (int)aio->slots)
        return;
    int none = -1;
    /* The slot holds a reference to the open file, and with it its locks: empty it now. */
    (void)io_uring_register_files_update(&aio->ring, (unsigned)file, &none, 1);
    aio->free[aio->slots_free++] = file;
}

static unsigned one_length(const struct io *io)
{
    return io->iov->iov_len < BYTES_MAX ? (unsigned)io->iov->iov_len : BYTES_MAX;
}

static void prepare(struct aio *aio, struct io_uring_sqe *sqe, struct io *io)
{
    bool fixed = io->file < (int)aio->slots;
    int fd = fixed ? io->file : io->fd;
    uint64_t offset = (uint64_t)io->offset;
    /* One segment needs no iovec to be copied in and checked. */
    if (io->op == IO_READ && io->iovcnt == 1)
        io_uring_prep_read(sqe, fd, io->iov->iov_base, one_length(io), offset);
    else if (io->op == IO_READ)
        io_uring_prep_readv(sqe, fd, io->iov, (unsigned)io->iovcnt, offset);
    else if (io->iovcnt == 1)
        io_uring_prep_write(sqe, fd, io->iov->iov_base, one_length(io), offset);
    else
        io_uring_prep_writev(sqe, fd, io->iov, (unsigned)io->iovcnt, offset);
    if (fixed)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, io);
}

/* An entry that is no io's has finished. A poll that could not be made, or was removed, says nothing. */
static void note(struct aio *aio, uint64_t data, int result)
{
    if (data >= NOTE_REMOVED)
        return;
    aio->polled &= ~(1u << (data - 1));
    if (result > 0)
        aio->readable |= 1u << (data - 1);
}

/* The kernel refuses the submission as such, for a reason that will stay: take back what it has not
 * consumed and give it that result. */
static void refuse_rest(struct aio *aio, int error)
{
    struct io_uring_sq *sq = &aio->ring.sq;
    unsigned head = __atomic_load_n(sq->khead, __ATOMIC_ACQUIRE);
    for (unsigned i = head; i != sq->sqe_tail; i++) {
        uint64_t data = sq->sqes[i & *sq->kring_mask].user_data;
        if (data <= NOTE_REMOVED) {
            note(aio, data, 0);
            continue;
        }
        struct io *io = (struct io *)(uintptr_t)data;
        io->result = error;
        io->next = aio->refused;
        aio->refused = io;
    }
    ring_drop_rest(&aio->ring);
}

static unsigned ring_flags(const struct aio *aio)
{
    return __atomic_load_n(aio->ring.sq.kflags, __ATOMIC_RELAXED);
}

/* Completions that only entering the kernel makes visible. */
static bool must_enter(const struct aio *aio)
{
    return (ring_flags(aio) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

static bool something_finished(const struct aio *aio)
{
    return io_uring_cq_ready(&aio->ring) > 0 || must_enter(aio);
}

/* Hand the submission ring to the kernel, and let it post what has finished on the same trip. */
static void push(struct aio *aio)
{
    unsigned left;
    while ((left = io_uring_sq_ready(&aio->ring)) > 0) {
        int taken = must_enter(aio) ? io_uring_submit_and_get_events(&aio->ring) : io_uring_submit(&aio->ring);
        if (taken >= 0 && io_uring_sq_ready(&aio->ring) < left)
            continue;
        if (taken == -EINTR)
            continue;
        if (taken < 0 && taken != -EAGAIN && taken != -EBUSY)
            refuse_rest(aio, taken);
        /* What stays is tried again by the next reap; make sure that there will be one. */
        (void)eventfd_write(aio->event_fd, 1);
        return;
    }
}

static void remove_polls(struct aio *aio)
{
    for (unsigned i = 0; i < WAIT_FDS; i++) {
        struct io_uring_sqe *sqe = (aio->polled & 1u << i) != 0 ? io_uring_get_sqe(&aio->ring) : NULL;
        if (sqe == NULL)
            continue;
        io_uring_prep_poll_remove(sqe, 1 + i);
        sqe->user_data = NOTE_REMOVED;
    }
}

static int uring_submit(struct aio *aio, struct io *const *ios, int n)
{
    int taken = 0;
    if (aio->polled != 0 && ++aio->unused % UNUSED_MAX == 0)
        remove_polls(aio);
    while (taken < n && aio->in_flight < aio->depth) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
        if (sqe == NULL)
            break;
        prepare(aio, sqe, ios[taken++]);
        aio->in_flight++;
    }
    push(aio);
    return taken;
}

static void start_polls(struct aio *aio, const int *fds)
{
    for (unsigned i = 0; i < WAIT_FDS; i++) {
        struct io_uring_sqe *sqe = (aio->polled & 1u << i) == 0 ? io_uring_get_sqe(&aio->ring) : NULL;
        if (sqe == NULL)
            continue;
        io_uring_prep_poll_add(sqe, fds[i], POLLIN);
        sqe->user_data = 1 + i;
        aio->polled |= 1u << i;
    }
}

/* Notes that come before the first io's entry. A poll whose descriptor can be read already is one of them, as the polls
 * are submitted first; others are for the next reap. */
static void take_notes(struct aio *aio)
{
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&aio->ring, &cqe) == 0 && cqe->user_data <= NOTE_REMOVED) {
        note(aio, cqe->user_data, cqe->res);
        io_uring_cqe_seen(&aio->ring, cqe);
    }
}

static int uring_submit_and_wait(struct aio *aio, struct io *io, const int *fds)
{
    aio->readable = aio->unused = 0;
    start_polls(aio, fds);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
    if (sqe == NULL)
        return -1;
    prepare(aio, sqe, io);
    aio->in_flight++;
    (void)io_uring_cq_eventfd_toggle(&aio->ring, false);
    (void)io_uring_submit_and_wait(&aio->ring, 1);
    (void)io_uring_cq_eventfd_toggle(&aio->ring, true); /* what rang no bell until now is for the reap that follows */
    take_notes(aio);
    push(aio); /* what was not consumed, and why */
    return (int)aio->readable;
}

static int uring_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

/* What is in the completion ring, and what the kernel has kept for us. One trip posts no more than 20
 * entries on 6.18, hence the loop. A trip that posts none ends it: the kernel sets IORING_SQ_TASKRUN after
 * it has queued the work, so when we have run that work in between, the flag stays set for nothing until
 * the next work comes. */
static int collect(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        int error = must_enter(aio) ? io_uring_get_events(&aio->ring) : 0;
        io_uring_for_each_cqe(&aio->ring, head, cqe) {
            if (n == max)
                break;
            seen++;
            if (cqe->user_data <= NOTE_REMOVED) {
                note(aio, cqe->user_data, cqe->res);
                continue;
            }
            struct io *io = io_uring_cqe_get_data(cqe);
            io->result = cqe->res;
            out[n++] = io;
        }
        io_uring_cq_advance(&aio->ring, seen);
        if (error < 0)
            (void)eventfd_write(aio->event_fd, 1); /* come back for what it did not give */
        if (n == max || error < 0 || seen == 0 || !must_enter(aio))
            return n;
    }
}

static int uring_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    while (n < max && aio->refused != NULL) {
        out[n++] = aio->refused;
        aio->refused = aio->refused->next;
    }
    if (io_uring_sq_ready(&aio->ring) > 0)
        push(aio);
    if (something_finished(aio)) {
        (void)io_uring_cq_eventfd_toggle(&aio->ring, false);
        n += collect(aio, out + n, max - n);
        (void)io_uring_cq_eventfd_toggle(&aio->ring, true);
    }
    /* What finished while the eventfd was off rang no bell: look again after turning it on. The fence
     * orders our store before that look; the kernel notes work before it reads the switch. */
    atomic_thread_fence(memory_order_seq_cst);
    if (n < max && something_finished(aio))
        n += collect(aio, out + n, max - n);
    aio->in_flight -= (unsigned)n;
    return n;
}

static void uring_close(struct aio *aio)
{
    io_uring_queue_exit(&aio->ring);
    close(aio->event_fd);
    free(aio);
}

const struct driver driver_io_uring = {
    .name = "io_uring",
    .description = "io_uring: single issuer, deferred task work, registered files",
    .operations = 1u << IO_READ | 1u << IO_WRITE,
    .probe = uring_probe,
    .open = uring_open,
    .attach = uring_attach,
    .detach = uring_detach,
    .submit = uring_submit,
    .submit_and_wait = uring_submit_and_wait,
    .event_fd = uring_event_fd,
    .reap = uring_reap,
    .cancel = NULL, /* submit starts them all */
    .close = uring_close,
};
