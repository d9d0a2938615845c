/* request.c -- see request.h: the pool. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "merge.h"
#include "request.h"

#define PAGE 4096u

/* head, then payload, then edge: each at a page of its own. Pages that are never used are never backed
 * by memory. */
#define SLOT_SIZE (PAGE + PAYLOAD_SIZE + BLOCK_MAX)

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

static void lay_out(struct request_pool *pool, unsigned i)
{
    struct request *r = &pool->requests[i];
    unsigned char *slot = pool->memory + (size_t)i * SLOT_SIZE;

    r->head = slot;
    r->payload = slot + PAGE;
    r->edge = slot + PAGE + PAYLOAD_SIZE;
    r->segments = pool->segments + (size_t)i * pool->segments_max;
}

int request_pool_open(struct request_pool *pool, unsigned count, unsigned resizes)
{
    *pool = (struct request_pool){.count = count, .resizes = resizes};
    pool->segments_max = count < MERGE_SPANS_MAX ? count : MERGE_SPANS_MAX;
    pool->memory_size = (size_t)count * SLOT_SIZE;
    pool->segments_size = (size_t)count * pool->segments_max * sizeof(struct iovec);
    pool->requests = calloc(count + resizes, sizeof *pool->requests);
    pool->memory = map(pool->memory_size);
    pool->segments = map(pool->segments_size);
    if (!pool->requests || !pool->memory || !pool->segments) {
        request_pool_close(pool);
        return -ENOMEM;
    }
    for (unsigned i = count + resizes; i-- > 0;) {
        if (i < count)
            lay_out(pool, i);
        pool->requests[i].state = REQUEST_READING;
        request_put(pool, &pool->requests[i]);
    }
    return 0;
}

void request_pool_close(struct request_pool *pool)
{
    if (pool->memory)
        munmap(pool->memory, pool->memory_size);
    if (pool->segments)
        munmap(pool->segments, pool->segments_size);
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
    return take(&pool->free);
}

struct request *request_get_resize(struct request_pool *pool)
{
    return take(&pool->free_resizes);
}

void request_put(struct request_pool *pool, struct request *r)
{
    struct request **list = r->payload ? &pool->free : &pool->free_resizes;

    assert(r->state != REQUEST_FREE && !r->waiters && !r->merged);
    r->state = REQUEST_FREE;
    r->next = *list;
    *list = r;
}
