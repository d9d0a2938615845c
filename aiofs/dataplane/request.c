/* request.c -- see request.h: the pool. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "merge.h"
#include "request.h"

#define PAGE 4096u

/* Segments and head, own payload, edge: each at a page of its own, so that O_DIRECT can have the payload. */
static size_t start_size(const struct request_pool *pool)
{
    return (pool->segments_max * sizeof(struct iovec) + WIRE_HEAD + PAGE - 1) & ~(size_t)(PAGE - 1);
}

static void lay_out(struct request_pool *pool, unsigned i)
{
    struct request *r = &pool->requests[i];
    unsigned char *start = stock_buffer(&pool->shorts, i);

    r->segments = (struct iovec *)(void *)start;
    r->head = start + pool->segments_max * sizeof(struct iovec);
    r->own = r->payload = start + start_size(pool);
    r->edge = r->own + SHORT_SIZE;
}

static void add(struct request_pool *pool, unsigned i)
{
    pool->requests[i].state = REQUEST_READING;
    request_put(pool, &pool->requests[i]);
}

/* Put into the free lists what has been populated since the last time. */
static void take_up(struct request_pool *pool)
{
    unsigned shorts = atomic_load_explicit(&pool->shorts.populated, memory_order_acquire);
    unsigned longs = atomic_load_explicit(&pool->longs.populated, memory_order_acquire);

    for (; pool->shorts_taken_up < shorts; pool->shorts_taken_up++) {
        lay_out(pool, pool->shorts_taken_up);
        add(pool, pool->shorts_taken_up);
    }
    for (; pool->longs_taken_up < longs; pool->longs_taken_up++)
        request_put_long(pool, stock_buffer(&pool->longs, pool->longs_taken_up));
}

int request_pool_open(struct request_pool *pool, unsigned count, unsigned resizes, int wake_fd)
{
    int error;

    *pool = (struct request_pool){.count = count, .resizes = resizes};
    pool->segments_max = count < MERGE_SPANS_MAX ? count : MERGE_SPANS_MAX;
    pool->requests = populated_calloc(count + resizes, sizeof *pool->requests);
    pool->free_longs = populated_calloc(count, sizeof *pool->free_longs);
    error = pool->requests && pool->free_longs ? 0 : -ENOMEM;
    if (!error)
        error = stock_open(&pool->shorts, count, start_size(pool) + SHORT_SIZE + BLOCK_MAX, SHORTS_STEP);
    if (!error)
        error = stock_open(&pool->longs, count, LONG_SIZE, LONGS_STEP);
    if (!error)
        error = filler_open(&pool->filler, &pool->shorts, &pool->longs, wake_fd);
    if (error) {
        request_pool_close(pool);
        return error;
    }
    take_up(pool);
    for (unsigned i = 0; i < resizes; i++)
        add(pool, count + i);
    return 0;
}

void request_pool_close(struct request_pool *pool)
{
    filler_close(&pool->filler);
    stock_close(&pool->shorts);
    stock_close(&pool->longs);
    free(pool->free_longs);
    free(pool->requests);
    *pool = (struct request_pool){0};
}

static struct request *take(struct request **list)
{
    struct request *r = *list;

    if (!r)
        return NULL;
    assert(r->state == REQUEST_FREE);
    *list = r->next;
    r->next = NULL;
    r->state = REQUEST_READING;
    r->step = STEP_WHOLE;
    r->done = r->pad = r->tries = r->alone = 0;
    r->image = NULL;
    return r;
}

struct request *request_get(struct request_pool *pool)
{
    if (!pool->free)
        take_up(pool);
    if (!pool->free)
        filler_ask(&pool->filler, &pool->shorts);
    return take(&pool->free);
}

unsigned char *request_get_long(struct request_pool *pool)
{
    if (!pool->free_longs_count)
        take_up(pool);
    if (!pool->free_longs_count) {
        filler_ask(&pool->filler, &pool->longs);
        return NULL;
    }
    return pool->free_longs[--pool->free_longs_count];
}

void request_put_long(struct request_pool *pool, unsigned char *buffer)
{
    pool->free_longs[pool->free_longs_count++] = buffer;
}

struct request *request_get_resize(struct request_pool *pool)
{
    return take(&pool->free_resizes);
}

void request_put(struct request_pool *pool, struct request *r)
{
    struct request **list = r->own ? &pool->free : &pool->free_resizes;

    assert(r->state != REQUEST_FREE && !r->waiters && !r->merged);
    if (r->longer)
        request_put_long(pool, r->longer);
    r->longer = NULL;
    r->payload = r->own;
    r->state = REQUEST_FREE;
    r->next = *list;
    *list = r;
}
