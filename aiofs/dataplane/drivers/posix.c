/* posix.c -- the driver on POSIX AIO as glibc does it (aio_read(3)): for comparison, and for what it shows
 * of an AIO that was specified before its implementation. Never chosen over `threads`.
 *
 * Four things of glibc's shape this file:
 * - It runs the requests of one descriptor one after another, so each file gets LANES duplicates of its
 *   descriptor (one open file description: locks hold), and an io goes to the lane with the least to do.
 * - It has no vectors, so an io of several segments goes through a bounce buffer as ONE request: one aiocb
 *   per segment would make merging useless.
 * - It tells of a completion by a signal to the whole process, which would hit whatever thread has it
 *   unblocked (Python's main thread), or by starting a thread (SIGEV_THREAD), which is dear
 *   but disturbs nobody: `notify` runs in it. (An io costs 33-60 us of CPU here, 9-17 with `threads`.) A
 *   collector in aio_suspend(3), not tried, would have to be interrupted at every submit.
 * - Its aio_cancel(3) of a request that is first in its descriptor's line, but has no thread yet, loses every
 *   later request of that descriptor (tried on 2.36: EINPROGRESS for ever). So there is no cancel here.
 *
 * Threads: the caller's, and glibc's, which run `notify` only. A notifier's last access to the instance
 * is the decrement of `notifiers`, which close waits for.
 * States of a slot: free -> with glibc -> done (pushed by notify) -> ready (taken by the caller, in the
 * order in which they finished) -> free.
 * Invariants: used slots <= depth; a slot with bounce != NULL owns that buffer.
 * Known limit: when glibc cannot start the notifying thread (EAGAIN), nobody learns of the completion.
 */
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "driver.h"

/* Requests of one file that run at once. */
#define LANES 8

/* glibc's pool, shared by the whole process; its default is 20. */
#define GLIBC_THREADS 64

/* The longest io the loop merges to (DESIGN.md), and how many such can be under way. A longer one of several
 * segments is done up to here: a short count. */
#define BOUNCE_BYTES ((size_t)1 << 20)
#define BOUNCES_MAX 16u

#define NOTIFIER_STACK_BYTES ((size_t)128 << 10)

struct slot {
    struct aiocb cb;
    struct aio *aio;
    struct io *io;
    char *bounce;
    unsigned *lane_load;
    struct slot *next;
};

struct file {
    int fds[LANES]; /* fds[0] is the caller's own, the others are ours */
    unsigned loads[LANES];
    int lanes; /* 0: free */
};

struct aio {
    int event_fd;
    pthread_attr_t attr;
    struct slot *slots;
    struct slot *free;
    struct slot *ready; /* taken from done, in order */
    struct file **files;
    int files_size;
    char *bounce_area;
    size_t bounce_size;
    char *bounces[BOUNCES_MAX]; /* free ones */
    unsigned bounces_free;
    struct slot *_Atomic done; /* newest first */
    _Atomic unsigned notifiers; /* notify calls still to come or running */
};

static int posix_probe(char *why, size_t size)
{
    (void)why;
    (void)size;
    return 0;
}

/* A thread of glibc's, one for each completion. */
static void notify(union sigval value)
{
    struct slot *slot = value.sival_ptr;
    struct aio *aio = slot->aio;
    struct slot *head = atomic_load_explicit(&aio->done, memory_order_relaxed);
    do
        slot->next = head;
    while (!atomic_compare_exchange_weak_explicit(&aio->done, &head, slot, memory_order_release,
                                                  memory_order_relaxed));
    if (head == NULL)
        (void)eventfd_write(aio->event_fd, 1);
    atomic_fetch_sub_explicit(&aio->notifiers, 1, memory_order_release);
}

static void start_glibc(void)
{
    struct aioinit init = {.aio_threads = GLIBC_THREADS, .aio_num = GLIBC_THREADS, .aio_idle_time = 1};
    aio_init(&init);
}

static void posix_close(struct aio *aio)
{
    while (atomic_load_explicit(&aio->notifiers, memory_order_acquire) > 0)
        sched_yield();
    for (int i = 0; i < aio->files_size; i++)
        free(aio->files[i]);
    if (aio->bounce_area != NULL)
        munmap(aio->bounce_area, aio->bounce_size);
    pthread_attr_destroy(&aio->attr);
    close(aio->event_fd);
    free(aio->files);
    free(aio->slots);
    free(aio);
}

static int allocate(struct aio *aio, unsigned depth)
{
    unsigned bounces = depth < BOUNCES_MAX ? depth : BOUNCES_MAX;
    aio->slots = calloc(depth, sizeof *aio->slots);
    if (aio->slots == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < depth; i++) {
        aio->slots[i].aio = aio;
        aio->slots[i].next = aio->free;
        aio->free = &aio->slots[i];
    }
    /* Pages come when they are first used; page-aligned, as O_DIRECT wants it. */
    aio->bounce_size = bounces * BOUNCE_BYTES;
    void *area = mmap(NULL, aio->bounce_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return -errno;
    aio->bounce_area = area;
    for (; aio->bounces_free < bounces; aio->bounces_free++)
        aio->bounces[aio->bounces_free] = aio->bounce_area + aio->bounces_free * BOUNCE_BYTES;
    return 0;
}

static int posix_open(struct aio **out, unsigned depth)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct aio *aio = calloc(1, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->event_fd < 0) {
        int error = -errno;
        free(aio);
        return error;
    }
    pthread_once(&once, start_glibc);
    pthread_attr_init(&aio->attr);
    int error = -pthread_attr_setdetachstate(&aio->attr, PTHREAD_CREATE_DETACHED);
    if (error == 0)
        error = -pthread_attr_setstacksize(&aio->attr, NOTIFIER_STACK_BYTES);
    if (error == 0)
        error = allocate(aio, depth);
    if (error < 0) {
        posix_close(aio);
        return error;
    }
    *out = aio;
    return 0;
}

/* ---- files and lanes ---- */

static int free_file(struct aio *aio)
{
    for (int i = 0; i < aio->files_size; i++)
        if (aio->files[i]->lanes == 0)
            return i;
    struct file **files = realloc(aio->files, (size_t)(aio->files_size + 1) * sizeof *files);
    if (files == NULL)
        return -ENOMEM;
    aio->files = files;
    files[aio->files_size] = calloc(1, sizeof **files);
    return files[aio->files_size] == NULL ? -ENOMEM : aio->files_size++;
}

static int posix_attach(struct aio *aio, int fd)
{
    struct rlimit limit;
    int index = free_file(aio);
    if (index < 0)
        return index;
    struct file *file = aio->files[index];
    file->fds[0] = fd;
    file->lanes = 1;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return index;
    while (file->lanes < LANES) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0)
            break;
        /* Numbers are given lowest first: this one tells how many are in use. Half of them are left to
         * the rest of the process; fewer lanes only cost speed. */
        if ((rlim_t)copy >= limit.rlim_cur / 2) {
            close(copy);
            break;
        }
        file->fds[file->lanes++] = copy;
    }
    return index;
}

static void posix_detach(struct aio *aio, int index)
{
    struct file *file = aio->files[index];
    for (int i = 1; i < file->lanes; i++)
        close(file->fds[i]);
    file->lanes = 0;
}

static int least_loaded(const struct file *file)
{
    int best = 0;
    for (int i = 1; i < file->lanes; i++)
        if (file->loads[i] < file->loads[best])
            best = i;
    return best;
}

/* ---- bounce buffers ---- */

static size_t total_bytes(const struct io *io)
{
    size_t total = 0;
    for (int i = 0; i < io->iovcnt; i++)
        total += io->iov[i].iov_len;
    return total < BOUNCE_BYTES ? total : BOUNCE_BYTES;
}

static void gather(char *to, const struct io *io, size_t bytes)
{
    for (const struct iovec *v = io->iov; bytes > 0; v++) {
        size_t n = v->iov_len < bytes ? v->iov_len : bytes;
        memcpy(to, v->iov_base, n);
        to += n;
        bytes -= n;
    }
}

static void scatter(const struct io *io, const char *from, size_t bytes)
{
    for (const struct iovec *v = io->iov; bytes > 0; v++) {
        size_t n = v->iov_len < bytes ? v->iov_len : bytes;
        memcpy(v->iov_base, from, n);
        from += n;
        bytes -= n;
    }
}

/* ---- submit and reap ---- */

static void prepare(struct slot *slot, struct io *io, struct file *file)
{
    struct aio *aio = slot->aio;
    int lane = least_loaded(file);
    slot->io = io;
    slot->lane_load = &file->loads[lane];
    slot->cb = (struct aiocb){.aio_fildes = file->fds[lane], .aio_offset = io->offset};
    slot->cb.aio_sigevent.sigev_notify = SIGEV_THREAD;
    slot->cb.aio_sigevent.sigev_notify_function = notify;
    slot->cb.aio_sigevent.sigev_notify_attributes = &aio->attr;
    slot->cb.aio_sigevent.sigev_value.sival_ptr = slot;
    slot->bounce = NULL;
    if (io->op == IO_FSYNC)
        return;
    slot->cb.aio_buf = io->iov->iov_base;
    slot->cb.aio_nbytes = io->iov->iov_len;
    if (io->iovcnt > 1) {
        slot->bounce = aio->bounces[--aio->bounces_free];
        slot->cb.aio_buf = slot->bounce;
        slot->cb.aio_nbytes = total_bytes(io);
        if (io->op == IO_WRITE)
            gather(slot->bounce, io, slot->cb.aio_nbytes);
    }
}

static int start(struct slot *slot)
{
    switch (slot->io->op) {
    case IO_READ:
        return aio_read(&slot->cb);
    case IO_WRITE:
        return aio_write(&slot->cb);
    case IO_FSYNC:
        return aio_fsync(O_DSYNC, &slot->cb);
    case IO_TRUNCATE:
    case IO_FALLOCATE:
    case IO_SEEK:
    case IO_OPS:
        break;
    }
    errno = EINVAL;
    return -1;
}

static int posix_submit(struct aio *aio, struct io *const *ios, int n)
{
    int taken = 0;
    for (; taken < n && aio->free != NULL; taken++) {
        struct io *io = ios[taken];
        if (io->iovcnt > 1 && io->op != IO_FSYNC && aio->bounces_free == 0)
            break;
        struct slot *slot = aio->free;
        aio->free = slot->next;
        prepare(slot, io, aio->files[io->file]);
        (*slot->lane_load)++;
        atomic_fetch_add_explicit(&aio->notifiers, 1, memory_order_relaxed);
        if (start(slot) < 0) {
            /* Refused: glibc will not notify, so we do; `reap` takes the errno from here. */
            io->result = -errno;
            slot->cb.aio_sigevent.sigev_notify = SIGEV_NONE;
            notify((union sigval){.sival_ptr = slot});
        }
    }
    return taken;
}

static int posix_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

/* The slot is free again; returns its io with the result. */
static struct io *finish(struct aio *aio, struct slot *slot)
{
    struct io *io = slot->io;
    if (slot->cb.aio_sigevent.sigev_notify != SIGEV_NONE) {
        int error = aio_error(&slot->cb);
        io->result = error != 0 ? -error : (int64_t)aio_return(&slot->cb);
    }
    if (slot->bounce != NULL) {
        if (io->op == IO_READ && io->result > 0)
            scatter(io, slot->bounce, (size_t)io->result);
        aio->bounces[aio->bounces_free++] = slot->bounce;
    }
    (*slot->lane_load)--;
    slot->next = aio->free;
    aio->free = slot;
    return io;
}

static struct slot *reversed(struct slot *list)
{
    struct slot *result = NULL;
    while (list != NULL) {
        struct slot *next = list->next;
        list->next = result;
        result = list;
        list = next;
    }
    return result;
}

static int posix_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    while (n < max) {
        if (aio->ready == NULL) {
            if (atomic_load_explicit(&aio->done, memory_order_relaxed) == NULL)
                break;
            aio->ready = reversed(atomic_exchange_explicit(&aio->done, NULL, memory_order_acquire));
        }
        struct slot *slot = aio->ready;
        aio->ready = slot->next;
        out[n++] = finish(aio, slot);
    }
    return n;
}

const struct driver driver_posix = {
    .name = "posix",
    .description = "POSIX AIO of glibc (aio_read): for comparison",
    .operations = 1u << IO_READ | 1u << IO_WRITE | 1u << IO_FSYNC,
    .probe = posix_probe,
    .open = posix_open,
    .attach = posix_attach,
    .detach = posix_detach,
    .submit = posix_submit,
    .event_fd = posix_event_fd,
    .reap = posix_reap,
    .cancel = NULL, /* aio_cancel loses requests: see above */
    .close = posix_close,
};
