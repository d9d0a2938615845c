/* request.h -- one request of the kernel (or one resize of the control plane) in work, and their pool.
 *
 * States, and who holds the request in each:
 *
 *   FREE     the pool
 *   READING  the drain: the kernel's next message is read into it
 *   WAITING  the image: overlaps an earlier one that is not answered yet (image.h)
 *   READY    the plane's ready list: to be merged and submitted with the next batch, or with one after that (lumps.h)
 *   RUNNING  the queue: its io, or the io it was merged into, is in flight; or finished, on the plane's list of those
 *
 *   FREE -> READING -> FREE                      answered at once, forwarded, or refused
 *   FREE -> READING -> (WAITING ->) READY -> RUNNING -> (READY -> RUNNING)* -> FREE
 *
 * Invariants: a request on an image's active list is WAITING, READY or RUNNING. A request is answered
 * exactly once, on its way to FREE.
 *
 * Memory: a request has room of its own for what is short. What is longer is in a long buffer while the request
 * lasts; READs that are merged share one, held by the first, so that the device is given one piece of memory.
 * Both are stocks (populate.h): a start of each is there from the beginning, more comes as more is in use at
 * once, up to `count`, and what has come stays.
 */
#ifndef AIOFS_REQUEST_H
#define AIOFS_REQUEST_H

#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "populate.h"
#include "protocol.h"

struct image;

enum request_kind {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_FSYNC,
    REQUEST_FALLOCATE,
    REQUEST_LSEEK,
    REQUEST_TRUNCATE /* the control plane's; all before it are the kernel's, numbered as in message_kind */
};
enum request_state { REQUEST_FREE, REQUEST_READING, REQUEST_WAITING, REQUEST_READY, REQUEST_RUNNING };

/* What the next io of a request is for. */
enum request_step {
    STEP_WHOLE,     /* the request as it came */
    STEP_PADDED,    /* a READ widened to whole blocks; its data starts at payload + pad */
    STEP_EDGE_HEAD, /* read-modify-write: the block before an unaligned WRITE's first byte */
    STEP_EDGE_TAIL, /* the block behind its last byte */
    STEP_MODIFIED,  /* write the widened range */
    STEP_TAIL,      /* an unaligned WRITE at or past the last whole block, through the tail descriptor */
    STEP_DURABLE    /* an fdatasync for the FALLOCATE that has been done */
};

/* O_DIRECT block sizes up to this are served; the control plane refuses larger ones. */
#define BLOCK_MAX 4096u

/* Room for data that is widened to whole blocks at both ends: of WIRE_DATA_MAX bytes, and of 16 KiB, which is the
 * page size of most databases: with depth 128, 4 MiB are resident then, not 128. */
#define LONG_SIZE (WIRE_DATA_MAX + 2 * BLOCK_MAX)
#define SHORT_SIZE (16384u + 2 * BLOCK_MAX)

/* Populated at start, and whenever there are too few: half a MiB, and two huge pages. */
#define SHORTS_STEP 16
#define LONGS_STEP 3

/* Who goes through the page cache dirties whole pages, so it locks whole pages. */
#define LOCK_GRANULE 4096u

/* How often one request may be answered EINTR or EAGAIN by its driver before `threads` gets it. */
#define DRIVER_TRIES 4

struct request {
    struct io io; /* first: a reaped io is its request */

    enum request_kind kind;
    enum request_state state;
    enum request_step step;
    uint32_t length; /* READ, WRITE: bytes asked for (FALLOCATE has its own in io.length) */
    int64_t offset;  /* bytes */
    int64_t arrived_ns; /* the plane's now_ns at its drain */
    uint64_t unique; /* of the message; of the command for REQUEST_TRUNCATE */
    struct image *image;

    int64_t lock_start, lock_end; /* the range that others must not touch: often wider than it is */
    uint32_t done;                /* bytes of the current step that earlier short ios have done */
    uint32_t pad;                 /* bytes that the widened range begins before offset */
    unsigned tries;               /* EINTR and EAGAIN so far */
    unsigned alone;               /* not to be merged: its io failed or came short before */
    uint64_t epoch;               /* the image's, at arrival: nothing is merged across it */

    struct iovec single;     /* the iovec of an io that carries only this request */
    struct iovec *segments;  /* of a merged io that this request heads: pool->segments_max of them */
    struct request *merged;  /* RUNNING: the next request in the same io */
    struct request *waiters; /* WAITING ones that this one blocks */
    struct request *next;    /* in the free list, a ready list, or another's waiters */
    struct request *newer, *older; /* the image's active list */

    unsigned char *head;    /* WIRE_HEAD bytes */
    unsigned char *payload; /* page-aligned: `own`, `longer`, or, merged, a part of the longer of who heads the io */
    unsigned char *own;     /* SHORT_SIZE bytes; NULL for the control plane's */
    unsigned char *longer;  /* the long buffer that it holds, of LONG_SIZE bytes, or NULL */
    unsigned char *edge;    /* BLOCK_MAX bytes, page-aligned */
};

/* `value` down or up to a multiple of `unit`, a power of two. */
static inline int64_t round_down(int64_t value, uint32_t unit)
{
    return value & ~((int64_t)unit - 1);
}

static inline int64_t round_up(int64_t value, uint32_t unit)
{
    return round_down(value + unit - 1, unit);
}

/* Lock the pages that r touches, whole. */
static inline void request_lock_pages(struct request *r)
{
    r->lock_start = round_down(r->lock_start, LOCK_GRANULE);
    r->lock_end = r->lock_end > INT64_MAX - LOCK_GRANULE ? INT64_MAX : round_up(r->lock_end, LOCK_GRANULE);
}

/* r is to be done alone, after it was a part of a merged io: what it shared is free when the first has been answered. */
static inline void request_leave_shared(struct request *r)
{
    if (!r->longer)
        r->payload = r->own;
}

struct request_pool {
    struct request *requests; /* `count` for the kernel's messages, then `resizes` without payload */
    struct request *free;     /* most recently used first: its payload is warm */
    struct request *free_resizes;
    unsigned count, resizes;
    unsigned segments_max; /* most requests in one io */
    unsigned char **free_longs; /* most recently used last */
    unsigned free_longs_count;
    struct stock shorts, longs;             /* what requests have of their own; long buffers */
    unsigned shorts_taken_up, longs_taken_up; /* of what is populated, so much has been in the free lists */
    struct filler filler;
};

/* `wake_fd`: an eventfd of the loop, rung when there are more than there were. 0, or -errno. */
int request_pool_open(struct request_pool *pool, unsigned count, unsigned resizes, int wake_fd);
void request_pool_close(struct request_pool *pool);

/* NULL: all that are populated are in use. */
struct request *request_get(struct request_pool *pool);
unsigned char *request_get_long(struct request_pool *pool);
void request_put_long(struct request_pool *pool, unsigned char *buffer);
struct request *request_get_resize(struct request_pool *pool);
void request_put(struct request_pool *pool, struct request *r);

#endif
