/* space.c -- see space.h. */
#include <errno.h>
#include <linux/falloc.h>
#include <unistd.h>

#include "space.h"

void space_take(struct request *r, struct image *image, const struct message *message)
{
    r->length = 0;
    r->io.length = message->length;
    r->io.mode = (int)message->mode;
    image->counters->requests_fallocate += r->kind == REQUEST_FALLOCATE;
    image->counters->requests_lseek += r->kind == REQUEST_LSEEK;
}

/* Collapsing and inserting ranges move what others address by its offset. A hole always keeps the size
 * (fallocate(2)). */
static int can_allocate(int mode)
{
    return mode == 0 || mode == FALLOC_FL_KEEP_SIZE || mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) ||
           mode == FALLOC_FL_ZERO_RANGE || mode == (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
}

int space_refuses(const struct request *r)
{
    if (r->kind == REQUEST_FALLOCATE)
        return can_allocate(r->io.mode) ? 0 : -EOPNOTSUPP;
    if (r->io.mode != SEEK_DATA && r->io.mode != SEEK_HOLE)
        return -EINVAL;
    return r->offset < 0 ? -ENXIO : 0; /* btrfs would take it for 0 */
}

static void lock_allocation(struct request *r)
{
    int64_t end = r->offset + r->io.length;
    int64_t size = image_size(r->image);

    if (end > size || r->image->active_resizes) { /* an error is a size of < 0 */
        r->lock_start = 0;
        r->lock_end = INT64_MAX;
    } else {
        r->lock_end = end;
        request_lock_pages(r);
    }
}

void space_set_lock(struct request *r)
{
    if (r->kind == REQUEST_FALLOCATE)
        lock_allocation(r);
    else if (r->kind == REQUEST_LSEEK)
        r->lock_end = INT64_MAX;
}

int space_is_answer(const struct request *r, int64_t error)
{
    return r->kind == REQUEST_LSEEK && error == -ENXIO;
}

/* A file that is all data, up to the hole that is behind every end. */
static int64_t seek_without_holes(const struct request *r)
{
    int64_t size = image_size(r->image);

    if (size < 0)
        return size;
    if (r->offset >= size)
        return -ENXIO;
    return r->io.mode == SEEK_DATA ? r->offset : size;
}

int64_t space_result(const struct request *r, int64_t error)
{
    /* The kernel takes ENOSYS for an answer of the whole mount and asks no more; it is one image's. */
    if (error == -ENOSYS)
        return -EOPNOTSUPP;
    /* A block device's word for parts of a sector and for what is behind its end. Callers who hear that it is
     * not supported write zeros themselves, which works. */
    if (error == -EINVAL && r->kind == REQUEST_FALLOCATE && r->image->flags & AIOFS_IMAGE_BLOCKDEV)
        return -EOPNOTSUPP;
    if (error == -EINVAL && r->kind == REQUEST_LSEEK) /* a block device again: it knows no holes */
        return seek_without_holes(r);
    return error;
}
