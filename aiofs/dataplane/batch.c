/* batch.c -- from the ready list to the drivers: prepare each request's io, merge, submit.
 *
 * One call is one batch: what became ready since the last one. A request is merged only while it is
 * whole and aligned; what came back short or failed goes out alone.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "plane.h"

static int64_t range_start(const struct request *r)
{
    return round_down(r->offset, r->image->block_size);
}

static int64_t range_end(const struct request *r)
{
    return round_up(r->offset + r->length, r->image->block_size);
}

/* Decide how an unaligned request is to be done. 0, or -errno. */
static int choose_step(struct request *r)
{
    uint32_t block = r->image->block_size;
    int64_t size;

    if (r->kind > REQUEST_WRITE || serve_is_aligned(r))
        return 0;
    if (r->offset + r->length > INT64_MAX - block)
        return -EFBIG;
    r->pad = (uint32_t)(r->offset - range_start(r));
    if (r->kind == REQUEST_READ) {
        r->step = STEP_PADDED;
        return 0;
    }
    size = image_size(r->image);
    if (size < 0)
        return (int)size;
    if (range_end(r) > size) {
        r->pad = 0;
        r->step = STEP_TAIL;
        return 0;
    }
    memmove(r->payload + r->pad, r->payload, r->length);
    r->step = r->pad ? STEP_EDGE_HEAD : STEP_EDGE_TAIL;
    return 0;
}

/* Where the current step's io begins and how long it is, `done` bytes less. */
static void set_range(struct request *r, int64_t start, int64_t end, unsigned char *buffer)
{
    r->single = (struct iovec){buffer + r->done, (size_t)(end - start) - r->done};
    r->io.offset = start + r->done;
    r->io.iov = &r->single;
    r->io.iovcnt = 1;
}

static void prepare(struct request *r)
{
    static const enum io_op operations[] = {
        [REQUEST_READ] = IO_READ,
        [REQUEST_WRITE] = IO_WRITE,
        [REQUEST_FSYNC] = IO_FSYNC,
        [REQUEST_FALLOCATE] = IO_FALLOCATE,
        [REQUEST_LSEEK] = IO_SEEK,
        [REQUEST_TRUNCATE] = IO_TRUNCATE,
    };
    struct image *image = r->image;

    r->io.op = operations[r->kind];
    r->io.fd = image->fd;
    if (r->kind > REQUEST_WRITE) {
        if (r->step == STEP_DURABLE)
            r->io.op = IO_FSYNC;
        r->io.offset = r->offset;
        r->io.iov = NULL;
        r->io.iovcnt = 0;
        return;
    }
    switch (r->step) {
    case STEP_TAIL:
        r->io.fd = image->tail_fd;
        set_range(r, r->offset, r->offset + r->length, r->payload);
        break;
    case STEP_WHOLE:
        set_range(r, r->offset, r->offset + r->length, r->payload);
        break;
    case STEP_PADDED:
    case STEP_MODIFIED:
        set_range(r, range_start(r), range_end(r), r->payload);
        break;
    case STEP_EDGE_HEAD:
        r->io.op = IO_READ;
        set_range(r, range_start(r), range_start(r) + image->block_size, r->edge);
        break;
    case STEP_EDGE_TAIL:
        r->io.op = IO_READ;
        set_range(r, range_end(r) - image->block_size, range_end(r), r->edge);
        break;
    case STEP_DURABLE: /* of a FALLOCATE */
        break;
    }
}

/* ---- merge and submit ---- */

static int mergeable(const struct request *r)
{
    return r->kind <= REQUEST_WRITE && r->step == STEP_WHOLE && !r->alone;
}

/* Of the ready list, in its order, what the devices are to have now; the rest stays ready. */
static struct request *take_ready(struct aiofs_plane *plane)
{
    struct request *r = plane->ready, *taken = NULL, **end = &taken;

    plane->ready = NULL;
    plane->ready_end = &plane->ready;
    while (r) {
        struct request *next = r->next;
        struct image *image = r->image;

        if (lumps_room(&image->lumps, image->active) == 0) {
            serve_ready(plane, r);
        } else {
            lumps_submitted(&image->lumps); /* or merged, which join() takes back */
            r->next = NULL;
            *end = r;
            end = &r->next;
        }
        r = next;
    }
    plane->counters.halves += taken && plane->ready;
    return taken;
}

/* Take a batch, prepared. Requests that cannot be done are answered on the way. */
static int take_batch(struct aiofs_plane *plane)
{
    struct request *r = take_ready(plane);
    int n = 0;

    while (r) {
        struct request *next = r->next;
        int error = r->step == STEP_WHOLE && r->done == 0 ? choose_step(r) : 0;

        if (error) {
            r->image->lumps.in_flight--;
            serve_fail(plane, r, error); /* may free others to go: they are in the next batch */
        } else {
            prepare(r);
            r->state = REQUEST_RUNNING;
            r->merged = NULL;
            plane->batch[n++] = r;
        }
        r = next;
    }
    return n;
}

static void plan(struct aiofs_plane *plane, int n)
{
    for (int i = 0; i < n; i++) {
        const struct request *r = plane->batch[i];
        uint64_t slot = (uint64_t)image_slot(&plane->images, r->image);

        /* The index makes a stream of its own for what must stay alone; slots are below 2^30. */
        plane->spans[i] = (struct span){
            .stream = mergeable(r) ? r->epoch << 32 | slot << 1 | (r->kind == REQUEST_WRITE)
                                   : UINT64_MAX << 31 | (uint64_t)i,
            .offset = r->offset,
            .length = r->length ? r->length : 1,
        };
    }
}

/* Link the requests of the chain that begins at batch[head]. Returns how many they are. */
static int link_chain(struct aiofs_plane *plane, int32_t head)
{
    struct request *last = plane->batch[head];
    int count = 1;

    for (int32_t i = plane->spans[head].next; i >= 0; i = plane->spans[i].next, count++)
        last = last->merged = plane->batch[i];
    return count;
}

/* Have merged READs read into one long buffer, held by the first, one behind the other: one piece of memory
 * for the device instead of one a request. Returns whether it could be done. */
static int share_buffer(struct aiofs_plane *plane, struct request *first)
{
    unsigned char *buffer;
    size_t size = 0;

    if (first->kind != REQUEST_READ)
        return 0; /* the data of a WRITE are where they are */
    for (const struct request *r = first; r; r = r->merged)
        if (r->longer)
            return 0;
    static_assert(LONG_SIZE >= MERGE_BYTES_MAX, "a merged io has room in a long buffer");
    buffer = request_get_long(&plane->pool);
    if (!buffer)
        return 0;
    first->longer = buffer;
    for (struct request *r = first; r; r = r->merged) {
        r->payload = buffer + size;
        size += r->length;
    }
    first->segments[0] = (struct iovec){buffer, size};
    return 1;
}

/* Make the io of the chain that begins at batch[head]. */
static struct io *join(struct aiofs_plane *plane, int32_t head)
{
    struct request *first = plane->batch[head];
    int count;

    if (plane->spans[head].next < 0)
        return &first->io;
    count = link_chain(plane, head);
    first->image->counters->merged += (uint64_t)count - 1;
    first->image->lumps.in_flight -= (unsigned)count - 1;
    first->io.iov = first->segments;
    if (share_buffer(plane, first)) {
        first->io.iovcnt = 1;
        return &first->io;
    }
    first->io.iovcnt = 0;
    for (const struct request *r = first; r; r = r->merged)
        first->segments[first->io.iovcnt++] = r->single;
    return &first->io;
}

/* One io, of the batch with this number. */
static void count_io(struct image *image, enum io_op op, uint64_t batch)
{
    image->counters->batches += image->last_batch != batch;
    image->last_batch = batch;
    image->counters->ios_read += op == IO_READ;
    image->counters->ios_write += op == IO_WRITE;
    image->counters->ios_fsync += op == IO_FSYNC;
    image->counters->ios_fallocate += op == IO_FALLOCATE;
    image->counters->ios_lseek += op == IO_SEEK;
}

static void count_batch(struct aiofs_plane *plane, int ios)
{
    int bucket = 31 - __builtin_clz((unsigned)ios);

    plane->counters.batches++;
    plane->counters.ios += (uint64_t)ios;
    plane->counters.batch_ios[bucket > 12 ? 12 : bucket]++;
}

static struct request *request_of(struct io *io)
{
    return (struct request *)io; /* io is its first member */
}

/* Would this io block a driver's submit, or wait in it for others, or did the driver keep refusing it? */
static int wants_thread(const struct request *r)
{
    return r->step == STEP_TAIL || r->tries > DRIVER_TRIES ||
           (r->io.op == IO_WRITE && r->image->flags & AIOFS_IMAGE_WRITES_BY_THREADS);
}

/* Is it done without threads of ours? Of one that has been marked. */
static int is_by_kernel(const struct request *r)
{
    const struct driver *driver = queue_driver(r->image->queue);

    return !r->io.blocks && driver != &driver_threads && driver != &driver_posix;
}

/* Of a batch that is about to go out. */
static void mark(struct aiofs_plane *plane, struct io **ios, int n)
{
    for (int i = 0; i < n; i++) {
        struct request *r = request_of(ios[i]);

        count_io(r->image, r->io.op, plane->counters.batches + 1);
        r->io.blocks = wants_thread(r);
    }
    plane->by_kernel = is_by_kernel(request_of(ios[0]));
    if (waiting_sleeps(&plane->waiting)) /* a core that looks takes no nap */
        naps_expect(&plane->naps, plane->now_ns);
    count_batch(plane, n);
}

static int is_wide(const struct io *io, uint32_t block_size)
{
    return io->op == IO_READ && (io->iovcnt > 1 || io->iov->iov_len > block_size);
}

/* The queue for an io, which from now on carries its file there. */
static struct queue *route_io(struct io *io)
{
    const struct image *image = request_of(io)->image;
    int wide = image->wide_queue != image->queue && is_wide(io, image->block_size);

    io->file = wide ? image->wide_file : image->file;
    return wide ? image->wide_queue : image->queue;
}

/* ios[0..n), all of one queue. The queues hold as many ios as there are requests, so none is refused. */
static void submit_run(struct queue *queue, struct io **ios, int n)
{
    int accepted = queue_submit(queue, ios, n);

    assert(accepted == n);
}

/* What a device that works in lumps, and is idle, gets first: it begins while the rest is being submitted, which the
 * kernel would otherwise show it all at once, 30 us later. */
#define FIRST_OF_LUMP 4

/* ios[0..n) are about to go out. */
static int starts_lump(struct io *const *ios, int n)
{
    const struct lumps *lumps = &request_of(ios[0])->image->lumps;

    return n > FIRST_OF_LUMP && lumps_are_seen(lumps) && lumps->in_flight == (unsigned)n;
}

int batch_submit(struct aiofs_plane *plane)
{
    int n = take_batch(plane);
    int ios = n;

    if (n == 0)
        return 0;
    if (plane->config.merge && n > 1) {
        plan(plane, n);
        ios = merge_plan(plane->merge, plane->spans, n, plane->heads);
        for (int i = 0; i < ios; i++)
            plane->ios[i] = join(plane, plane->heads[i]);
    } else {
        for (int i = 0; i < n; i++)
            plane->ios[i] = &plane->batch[i]->io;
    }
    for (int from = 0, to; from < ios; from = to) {
        struct queue *queue = route_io(plane->ios[from]);

        for (to = from + 1; to < ios && route_io(plane->ios[to]) == queue; to++)
            ;
        mark(plane, plane->ios + from, to - from);
        if (starts_lump(plane->ios + from, to - from)) {
            submit_run(queue, plane->ios + from, FIRST_OF_LUMP);
            from += FIRST_OF_LUMP;
        }
        submit_run(queue, plane->ios + from, to - from);
    }
    return ios;
}

/* Before it is prepared. */
static int is_for_thread(const struct request *r)
{
    const struct image *image = r->image;

    if (r->kind > REQUEST_WRITE || r->step != STEP_WHOLE || !serve_is_aligned(r))
        return 0;
    return (r->kind == REQUEST_WRITE && image->flags & AIOFS_IMAGE_WRITES_BY_THREADS) ||
           (queue_driver(image->queue) == &driver_threads && image->wide_queue == image->queue);
}

struct io *batch_take_for_thread(struct aiofs_plane *plane)
{
    struct io *io;

    if (!is_for_thread(plane->ready) || take_batch(plane) == 0)
        return NULL;
    io = &plane->batch[0]->io;
    mark(plane, &io, 1);
    return io;
}

int batch_submit_and_wait(struct aiofs_plane *plane, const int *fds)
{
    struct queue *queue;
    struct io *io;
    int mask;

    if (take_batch(plane) == 0)
        return -1;
    io = &plane->batch[0]->io;
    queue = route_io(io);
    mark(plane, &io, 1);
    mask = queue_can_wait(queue, io) ? queue_submit_and_wait(queue, io, fds) : -1;
    if (mask < 0)
        submit_run(queue, &io, 1);
    return mask;
}
