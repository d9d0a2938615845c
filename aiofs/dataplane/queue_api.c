/* queue_api.c -- the queue for Python (aiofs_queue_* of api.h): gives each io an id, keeps the structs that
 * queue.h wants to stay where they are, and waits. For tests, benchmarks and image sources to come; the
 * data plane's loop uses queue.h itself.
 *
 * Threads: one per queue.
 * States of a slot: free -> submitted (known by its id) -> finished (in `done`, still known by its id) ->
 * free, its result copied out by reap; or submitted -> free by cancel.
 * Invariants: used slots <= depth == the queue's depth, so the queue accepts whatever has got a slot.
 * Allocates at open, and at attach for a descriptor number higher than any before.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include "contract.h"
#include "queue.h"

/* What one read or write moves at most (MAX_RW_COUNT, read(2)). */
#define LENGTH_MAX 0x7ffff000u

/* The limit api.h names; queue.h allows the loop a little more. */
#define DEPTH_MAX 4096u

struct slot {
    struct io io;
    struct iovec iov;
    uint64_t id;
    struct slot *chain; /* the next of its hash bucket */
    struct slot *next;  /* the next free or finished one */
};

struct descriptor {
    bool attached;
    int file;
    unsigned in_flight;
};

struct aiofs_queue {
    struct queue *queue;
    unsigned used;
    uint32_t buckets_mask;
    struct slot *slots;
    struct slot *free;
    struct slot *done; /* oldest first */
    struct slot **done_last;
    struct slot **buckets;          /* by id */
    struct io **batch;              /* depth pointers */
    struct descriptor *descriptors; /* by number */
    int32_t descriptors_size;
};

static void release(aiofs_queue *q)
{
    if (q->queue != NULL)
        queue_close(q->queue);
    free(q->slots);
    free(q->buckets);
    free(q->batch);
    free(q->descriptors);
    free(q);
}

int32_t aiofs_queue_open(aiofs_queue **out, const char *name, uint32_t depth)
{
    const struct driver *driver = driver_by_name(name);
    if (driver == NULL)
        return -ENOENT;
    if (depth < 1 || depth > DEPTH_MAX)
        return -EINVAL;
    aiofs_queue *q = calloc(1, sizeof *q);
    if (q == NULL)
        return -ENOMEM;
    uint32_t buckets = 2;
    while (buckets < 2 * depth)
        buckets *= 2;
    q->buckets_mask = buckets - 1;
    q->done_last = &q->done;
    q->slots = calloc(depth, sizeof *q->slots);
    q->buckets = calloc(buckets, sizeof(struct slot *));
    q->batch = calloc(depth, sizeof(struct io *));
    int error = q->slots == NULL || q->buckets == NULL || q->batch == NULL ? -ENOMEM : 0;
    if (error == 0)
        error = queue_open(&q->queue, driver, depth);
    if (error < 0) {
        release(q);
        return error;
    }
    for (uint32_t i = depth; i-- > 0;) {
        q->slots[i].next = q->free;
        q->free = &q->slots[i];
    }
    *out = q;
    return 0;
}

int32_t aiofs_queue_close(aiofs_queue *q)
{
    if (q->used > 0)
        return -EBUSY;
    for (int32_t fd = 0; fd < q->descriptors_size; fd++)
        if (q->descriptors[fd].attached)
            queue_detach(q->queue, q->descriptors[fd].file);
    release(q);
    return 0;
}

/* ---- descriptors ---- */

static struct descriptor *attached(const aiofs_queue *q, int32_t fd)
{
    if (fd < 0 || fd >= q->descriptors_size || !q->descriptors[fd].attached)
        return NULL;
    return &q->descriptors[fd];
}

int32_t aiofs_queue_attach(aiofs_queue *q, int32_t fd)
{
    if (fd < 0)
        return -EBADF;
    if (attached(q, fd) != NULL)
        return -EEXIST;
    if (fd >= q->descriptors_size) {
        struct descriptor *grown = realloc(q->descriptors, (size_t)(fd + 1) * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        for (int32_t i = q->descriptors_size; i <= fd; i++)
            grown[i] = (struct descriptor){0};
        q->descriptors = grown;
        q->descriptors_size = fd + 1;
    }
    int file = queue_attach(q->queue, fd);
    if (file < 0)
        return file;
    q->descriptors[fd] = (struct descriptor){.attached = true, .file = file};
    return 0;
}

int32_t aiofs_queue_detach(aiofs_queue *q, int32_t fd)
{
    struct descriptor *descriptor = attached(q, fd);
    if (descriptor == NULL)
        return -EBADF;
    if (descriptor->in_flight > 0)
        return -EBUSY;
    queue_detach(q->queue, descriptor->file);
    descriptor->attached = false;
    return 0;
}

/* ---- slots and ids ---- */

/* The link that points to the slot with this id, or the NULL link at its chain's end. */
static struct slot **find(const aiofs_queue *q, uint64_t id)
{
    /* Fibonacci hashing: ids are mostly counted up, or addresses. */
    struct slot **link = &q->buckets[(id * 0x9e3779b97f4a7c15u >> 32) & q->buckets_mask];
    while (*link != NULL && (*link)->id != id)
        link = &(*link)->chain;
    return link;
}

static void give_back(aiofs_queue *q, struct slot *slot)
{
    struct slot **link = find(q, slot->id);
    assert(*link == slot);
    *link = slot->chain;
    q->descriptors[slot->io.fd].in_flight--;
    slot->next = q->free;
    q->free = slot;
    q->used--;
}

/* A slot for what Python describes; 0 and *out, or why not. */
static int take(aiofs_queue *q, const aiofs_io *from, struct slot **out)
{
    struct descriptor *descriptor = attached(q, from->fd);
    struct slot **link = find(q, from->id);
    if (descriptor == NULL)
        return -EBADF;
    if (from->op < 0 || from->op > IO_TRUNCATE || from->length > LENGTH_MAX)
        return -EINVAL;
    if (*link != NULL)
        return -EEXIST;
    struct slot *slot = q->free;
    q->free = slot->next;
    q->used++;
    descriptor->in_flight++;
    slot->id = from->id;
    slot->chain = NULL;
    *link = slot;
    slot->iov = (struct iovec){.iov_base = from->buffer, .iov_len = from->length};
    slot->io = (struct io){
        .op = (enum io_op)from->op,
        .fd = from->fd,
        .file = descriptor->file,
        .offset = from->offset,
        .iov = &slot->iov,
        .iovcnt = 1,
    };
    *out = slot;
    return 0;
}

static struct slot *slot_of(struct io *io)
{
    return (struct slot *)((char *)io - offsetof(struct slot, io));
}

int32_t aiofs_queue_submit(aiofs_queue *q, const aiofs_io *ios, uint32_t n)
{
    int taken = 0;
    while ((uint32_t)taken < n && q->free != NULL) {
        struct slot *slot = NULL;
        int error = take(q, &ios[taken], &slot);
        if (error < 0) {
            while (taken > 0)
                give_back(q, slot_of(q->batch[--taken]));
            return error;
        }
        q->batch[taken++] = &slot->io;
    }
    if (taken == 0)
        return 0;
    int accepted = queue_submit(q->queue, q->batch, taken);
    assert(accepted == taken);
    return accepted;
}

/* ---- reap, flush ---- */

/* Everything that has finished, from the queue to the list. */
static void collect(aiofs_queue *q)
{
    struct io *finished[64];
    int n;
    do {
        n = queue_reap(q->queue, finished, 64);
        for (int i = 0; i < n; i++) {
            struct slot *slot = slot_of(finished[i]);
            slot->next = NULL;
            *q->done_last = slot;
            q->done_last = &slot->next;
        }
    } while (n == 64);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Collect until the list holds something (or, for all, until nothing runs): 0, -ETIME or -EINTR. */
static int collect_until(aiofs_queue *q, bool all, int32_t timeout_ms)
{
    int64_t end = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
    int left = timeout_ms;
    for (;;) {
        collect(q);
        if (queue_in_flight(q->queue) == 0 || (!all && q->done != NULL))
            return 0;
        if (timeout_ms == 0)
            return -ETIME;
        if (timeout_ms > 0) {
            int64_t rest = end - now_ms();
            if (rest <= 0)
                return -ETIME;
            left = (int)rest;
        }
        int error = queue_wait(q->queue, left);
        if (error < 0 && error != -ETIME)
            return error;
    }
}

int32_t aiofs_queue_reap(aiofs_queue *q, aiofs_io *out, uint32_t max, int32_t timeout_ms)
{
    int error = collect_until(q, false, timeout_ms);
    if (error < 0 && error != -ETIME)
        return error;
    uint32_t n = 0;
    while (n < max && q->done != NULL) {
        struct slot *slot = q->done;
        q->done = slot->next;
        if (q->done == NULL)
            q->done_last = &q->done;
        out[n++] = (aiofs_io){
            .id = slot->id,
            .op = (int32_t)slot->io.op,
            .fd = slot->io.fd,
            .offset = slot->io.offset,
            .length = slot->iov.iov_len,
            .buffer = slot->iov.iov_base,
            .result = slot->io.result,
        };
        give_back(q, slot);
    }
    return (int32_t)n;
}

int32_t aiofs_queue_flush(aiofs_queue *q, int32_t timeout_ms)
{
    return collect_until(q, true, timeout_ms);
}

int32_t aiofs_queue_cancel(aiofs_queue *q, uint64_t id)
{
    struct slot *slot = *find(q, id);
    if (slot == NULL)
        return -ENOENT;
    /* One in `done` the queue does not know any more; it says -EALREADY of those as well. */
    int error = queue_cancel(q->queue, &slot->io);
    if (error == 0)
        give_back(q, slot);
    return error;
}

int32_t aiofs_queue_in_flight(aiofs_queue *q)
{
    return (int32_t)q->used;
}
