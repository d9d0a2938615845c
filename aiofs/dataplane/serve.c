/* serve.c -- the life of a data request: admit, (batch.c: prepare, merge, submit,) finish, answer.
 *
 * Knows images and queues, not how bytes reach us (dataplane.c) or what other messages mean.
 * request.h has the states, image.h the order of conflicting requests.
 *
 * An O_DIRECT image takes whole blocks only. An unaligned READ is widened and its data cut out. An
 * unaligned WRITE inside the image reads the blocks at its edges, puts them around the data and writes
 * whole blocks (steps EDGE_HEAD, EDGE_TAIL, MODIFIED); one that touches the end of the image would make
 * it longer than it is, so it goes through a second descriptor, buffered and O_DSYNC (STEP_TAIL): exact
 * to the byte, and durable and clean in the page cache before anyone else may touch that range.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "histogram.h"
#include "plane.h"
#include "space.h"

/* How often a request may come back from its image without progress (EINTR, EAGAIN, less than a block) before
 * it is answered with EIO. The first DRIVER_TRIES are the driver's, all after them those of `threads`. */
#define TRIES_MAX 64

/* ---- answers ---- */

void serve_pass(struct aiofs_plane *plane, void *reply, size_t size)
{
    struct iovec iov = {reply, size};

    replies_write(&plane->replies, &iov, 1);
}

void serve_refuse(struct aiofs_plane *plane, uint64_t unique, int error)
{
    replies_send(&plane->replies, unique, error, NULL, 0);
}

void serve_ready(struct aiofs_plane *plane, struct request *r)
{
    r->state = REQUEST_READY;
    r->next = NULL;
    *plane->ready_end = r;
    plane->ready_end = &r->next;
}

/* r has been answered: let go of it, and of those that waited for it. */
static void release(struct aiofs_plane *plane, struct request *r)
{
    struct image *image = r->image;
    struct request *waiting = image_leave(image, r);

    while (waiting) {
        struct request *next = waiting->next;

        serve_ready(plane, waiting);
        waiting = next;
    }
    request_put(&plane->pool, r);
    plane->counters.in_flight = --plane->in_work;
    if (image->unregister_id && image->active == 0) {
        replies_flush(&plane->replies); /* its last answer is written before anyone hears that it is done */
        control_unregistered(plane, image);
    }
}

/* r is about to be answered. */
static void count_latency(struct aiofs_plane *plane, struct image *image, const struct request *r)
{
    _Static_assert(REQUEST_READ == 0 && REQUEST_WRITE == 1 && REQUEST_FSYNC == 2 && REQUEST_FALLOCATE == 3 &&
                       REQUEST_LSEEK == 4,
                   "the order of `latency`");
    if (r->kind < REQUEST_TRUNCATE)
        histogram_add(&image->counters->latency[r->kind], plane->now_ns - r->arrived_ns);
}

void serve_fail(struct aiofs_plane *plane, struct request *r, int64_t error)
{
    r->image->counters->errors += !space_is_answer(r, error);
    count_latency(plane, r->image, r);
    if (r->kind == REQUEST_TRUNCATE)
        control_answer(plane, r->unique, error);
    else
        serve_refuse(plane, r->unique, (int)error);
    release(plane, r);
}

static void answer_read(struct aiofs_plane *plane, struct request *r, int64_t bytes)
{
    /* `bytes` counts from the start of the widened range. */
    int64_t mine = bytes - r->pad;

    mine = mine < 0 ? 0 : mine > r->length ? r->length : mine;
    r->image->counters->bytes_read += (uint64_t)mine;
    count_latency(plane, r->image, r);
    replies_send(&plane->replies, r->unique, 0, r->payload + r->pad, (size_t)mine);
    release(plane, r);
}

static void answer_write(struct aiofs_plane *plane, struct request *r)
{
    struct fuse_write_out out = {.size = r->length};

    r->image->counters->bytes_written += r->length;
    count_latency(plane, r->image, r);
    replies_send(&plane->replies, r->unique, 0, &out, sizeof out);
    release(plane, r);
}

static void answer_lseek(struct aiofs_plane *plane, struct request *r, int64_t offset)
{
    struct fuse_lseek_out out = {.offset = (uint64_t)offset};

    count_latency(plane, r->image, r);
    replies_send(&plane->replies, r->unique, 0, &out, sizeof out);
    release(plane, r);
}

static void answer_done(struct aiofs_plane *plane, struct request *r)
{
    count_latency(plane, r->image, r);
    if (r->kind == REQUEST_TRUNCATE)
        control_answer(plane, r->unique, 0);
    else
        serve_refuse(plane, r->unique, 0);
    release(plane, r);
}

/* ---- admission ---- */

int serve_is_aligned(const struct request *r)
{
    return (((uint64_t)r->offset | r->length) & (r->image->block_size - 1)) == 0;
}

static void admit(struct aiofs_plane *plane, struct request *r, struct image *image)
{
    r->image = image;
    r->lock_start = r->offset;
    r->lock_end = r->offset + r->length;
    if (r->kind > REQUEST_WRITE) {
        space_set_lock(r);
    } else if (!serve_is_aligned(r)) {
        image->counters->unaligned++;
        if (r->kind == REQUEST_WRITE)
            request_lock_pages(r);
    }
    plane->counters.in_flight = ++plane->in_work;
    if (image_enter(image, r))
        serve_ready(plane, r);
}

/* Answer what needs no I/O. Returns 1 when r is done with. */
static int answer_at_once(struct aiofs_plane *plane, struct request *r, struct image *image)
{
    struct fuse_write_out nothing = {.size = 0};
    int needs_io = r->kind == REQUEST_FSYNC ? !(image->flags & AIOFS_IMAGE_NO_FSYNC)
                                            : r->length > 0 || r->kind > REQUEST_FSYNC;
    int error = image->unregister_id ? -EBADF : 0;

    if (r->kind == REQUEST_FSYNC && !error)
        error = (int)image->sticky_error;
    else if (r->kind > REQUEST_FSYNC && !error)
        error = space_refuses(r);
    if (needs_io && !error)
        return 0;
    image->counters->errors += error < 0;
    count_latency(plane, image, r);
    if (r->kind == REQUEST_WRITE && !error)
        replies_send(&plane->replies, r->unique, 0, &nothing, sizeof nothing);
    else
        serve_refuse(plane, r->unique, error);
    request_put(&plane->pool, r);
    return 1;
}

void serve_message(struct aiofs_plane *plane, struct request *r, const struct message *message)
{
    struct image *image = image_find(&plane->images, message->node);

    _Static_assert((int)MESSAGE_READ == (int)REQUEST_READ && (int)MESSAGE_WRITE == (int)REQUEST_WRITE &&
                       (int)MESSAGE_FSYNC == (int)REQUEST_FSYNC &&
                       (int)MESSAGE_FALLOCATE == (int)REQUEST_FALLOCATE &&
                       (int)MESSAGE_LSEEK == (int)REQUEST_LSEEK,
                   "one order");
    r->kind = (enum request_kind)message->kind;
    r->arrived_ns = plane->now_ns;
    r->unique = message->unique;
    r->offset = message->offset;
    if (r->kind > REQUEST_FSYNC)
        space_take(r, image, message);
    else
        r->length = (uint32_t)message->length;
    image->counters->requests_read += r->kind == REQUEST_READ;
    image->counters->requests_write += r->kind == REQUEST_WRITE;
    image->counters->requests_fsync += r->kind == REQUEST_FSYNC;
    if (!answer_at_once(plane, r, image))
        admit(plane, r, image);
}

void serve_truncate(struct aiofs_plane *plane, struct request *r, struct image *image, int64_t size,
                    uint64_t command)
{
    r->kind = REQUEST_TRUNCATE;
    r->unique = command;
    r->offset = size;
    r->length = 0;
    image->counters->requests_truncate++;
    admit(plane, r, image);
}

/* ---- from result to answer ---- */

static void again(struct aiofs_plane *plane, struct request *r)
{
    r->image->counters->retries++;
    r->alone = 1;
    serve_ready(plane, r);
}

/* The io of r has done nothing that could be built on. */
static void again_unless_hopeless(struct aiofs_plane *plane, struct request *r)
{
    if (++r->tries < TRIES_MAX)
        again(plane, r);
    else
        serve_fail(plane, r, -EIO);
}

/* Bytes of the current step that are done, once `bytes` more have been; O_DIRECT goes on at whole
 * blocks only, so the part of a block is done again. 0: no progress. */
static uint32_t progress(const struct request *r, int64_t bytes)
{
    uint32_t unit = r->step == STEP_TAIL ? 1 : r->image->block_size;
    uint32_t now = (uint32_t)round_down((int64_t)r->done + bytes, unit);

    return now > r->done ? now : 0;
}

static void finish_read(struct aiofs_plane *plane, struct request *r, int64_t bytes)
{
    int64_t got = r->done + bytes;
    int64_t size;
    uint32_t now;

    if ((size_t)bytes == r->single.iov_len) {
        answer_read(plane, r, got);
        return;
    }
    /* No bytes at all mean no end either, unless the image's size says so: the kernel would fill up with zeros. */
    size = image_size(r->image);
    if (size >= 0 && r->io.offset + bytes >= size) {
        answer_read(plane, r, got); /* the end of the image */
        return;
    }
    /* Less than a block of progress: it ended at the old end of an image that a write, on its way at the
     * same time, has made longer. Reading again finds the new end. */
    now = progress(r, bytes);
    if (size < 0) {
        serve_fail(plane, r, size);
    } else if (now) {
        r->done = now;
        again(plane, r);
    } else {
        again_unless_hopeless(plane, r);
    }
}

static void finish_write(struct aiofs_plane *plane, struct request *r, int64_t bytes)
{
    uint32_t now;

    if ((size_t)bytes == r->single.iov_len) {
        answer_write(plane, r);
        return;
    }
    now = progress(r, bytes);
    if (now) {
        r->done = now;
        again(plane, r);
    } else if (bytes > 0) {
        again_unless_hopeless(plane, r); /* less than a block: to be done again whole */
    } else {
        serve_fail(plane, r, -ENOSPC); /* a write that cannot begin has no room: the next try would say so */
    }
}

/* An edge block has been read: put its part around the data, and go on to the next step. */
static void finish_edge(struct aiofs_plane *plane, struct request *r, int64_t bytes)
{
    uint32_t block = r->image->block_size;
    uint32_t end = r->pad + r->length; /* of the data, from payload */
    uint32_t over = end & (block - 1);

    if (bytes < block) {
        int64_t size = image_size(r->image);

        if (size < 0) {
            serve_fail(plane, r, size);
            return;
        }
        if (r->io.offset + bytes < size) {
            again_unless_hopeless(plane, r);
            return;
        }
        /* Someone made the image shorter underneath; what is past its end reads as zeros. */
        memset(r->edge + bytes, 0, (size_t)(block - bytes));
    }
    if (r->step == STEP_EDGE_HEAD)
        memcpy(r->payload, r->edge, r->pad);
    if (over && (r->step == STEP_EDGE_TAIL || end < block))
        memcpy(r->payload + end, r->edge + over, block - over);
    r->step = r->step == STEP_EDGE_HEAD && over && end > block ? STEP_EDGE_TAIL : STEP_MODIFIED;
    serve_ready(plane, r);
}

static void finish_fsync(struct aiofs_plane *plane, struct request *r, int64_t result)
{
    struct image *image = r->image;

    /* The kernel reports a writeback error once and then forgets it; an fsync that succeeds after that
     * says nothing about the lost pages. So the first error stays. */
    if (result < 0 && !image->sticky_error) {
        image->sticky_error = result;
        image->counters->sticky_error = result;
    }
    if (image->sticky_error)
        serve_fail(plane, r, image->sticky_error);
    else
        answer_done(plane, r);
}

/* Neither bytes nor an fsync. */
static void finish_other(struct aiofs_plane *plane, struct request *r, int64_t result)
{
    if (r->kind == REQUEST_LSEEK) {
        answer_lseek(plane, r, result);
    } else if (r->kind == REQUEST_FALLOCATE && r->image->flags & AIOFS_IMAGE_DSYNC) {
        r->step = STEP_DURABLE;
        serve_ready(plane, r);
    } else {
        answer_done(plane, r);
    }
}

/* The io of r alone has finished. */
static void finish(struct aiofs_plane *plane, struct request *r, int64_t result)
{
    if (result == -EINTR || result == -EAGAIN) {
        if (++r->tries < TRIES_MAX) {
            again(plane, r);
            return;
        }
        /* What a driver says of itself is no answer about the image. A caller would take it for a request to ask
         * again: the loops of Python, Go and the C library do, at once and for ever. */
        result = -EIO;
    }
    if (result < 0)
        result = space_result(r, result);
    if (r->io.op == IO_FSYNC)
        finish_fsync(plane, r, result);
    else if (result < 0)
        serve_fail(plane, r, result);
    else if (r->kind > REQUEST_FSYNC)
        finish_other(plane, r, result);
    else if (r->step == STEP_EDGE_HEAD || r->step == STEP_EDGE_TAIL)
        finish_edge(plane, r, result);
    else if (r->kind == REQUEST_READ)
        finish_read(plane, r, result);
    else
        finish_write(plane, r, result);
}

/* A merged io has finished: what it covers whole is done, everything else is done again one by one, so
 * that only the request that really fails gets the error. */
static void finish_merged(struct aiofs_plane *plane, struct request *r, int64_t result)
{
    int64_t left = result < 0 ? 0 : result;

    while (r) {
        struct request *next = r->merged;

        r->merged = NULL;
        if (left >= r->length) {
            left -= r->length;
            finish(plane, r, r->length);
        } else {
            left = 0;
            request_leave_shared(r);
            again(plane, r);
        }
        r = next;
    }
}

/* Reap at once. */
#define REAP_MAX 32

/* An io has come back. */
static void take(struct aiofs_plane *plane, struct io *io)
{
    lumps_reaped(&((struct request *)io)->image->lumps, io->op == IO_READ);
    io->next = NULL;
    *plane->finished_end = io;
    plane->finished_end = &io->next;
}

/* Take what this queue's drivers have finished: until fewer come than could. */
static int reap_queue(struct aiofs_plane *plane, struct queue *queue)
{
    struct io *ios[REAP_MAX];
    int total = 0, n;

    do {
        n = queue_reap(queue, ios, REAP_MAX);
        for (int i = 0; i < n; i++)
            take(plane, ios[i]);
        total += n;
    } while (n == REAP_MAX);
    return total;
}

void serve_finished(struct aiofs_plane *plane, struct io *io)
{
    take(plane, io);
    lumps_looked(&((struct request *)io)->image->lumps);
}

int serve_reap(struct aiofs_plane *plane)
{
    struct io **fresh = plane->finished_end;
    struct io *returned = stand_in_returned(plane);
    int total = returned != NULL;

    if (returned)
        take(plane, returned);
    for (int i = 0; i < QUEUES_MAX; i++)
        if (plane->queues[i])
            total += reap_queue(plane, plane->queues[i]);
    for (const struct io *io = *fresh; io; io = io->next)
        lumps_looked(&((const struct request *)io)->image->lumps);
    return total;
}

/* Answers in a row before the loop looks for new requests: the first answers make the kernel send new
 * ones, and while all 32 of a lump were answered (100 us) the device had nothing to do. */
#define ANSWERS_MAX 8

int serve_answer(struct aiofs_plane *plane)
{
    int n = 0;

    if (!plane->finished)
        return 0;
    /* Answered requests may be used again, and their buffers with them, from the next drain on. */
    replies_gather(&plane->replies);
    for (; n < ANSWERS_MAX && plane->finished; n++) {
        struct request *r = (struct request *)plane->finished;

        plane->finished = r->io.next;
        if (!plane->finished)
            plane->finished_end = &plane->finished;
        assert(r->state == REQUEST_RUNNING);
        plane->now_ns = clock_ns(); /* an io, not a reap: one merged of many takes long to answer */
        if (r->merged)
            finish_merged(plane, r, r->io.result);
        else
            finish(plane, r, r->io.result);
    }
    replies_flush(&plane->replies);
    return n;
}
