/* image.c -- see image.h. */
#include <assert.h>
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "image.h"
#include "populate.h"

/* ---- the table ---- */

int image_table_open(struct image_table *table, uint32_t max_images)
{
    uint32_t cells = 16;

    while (cells < max_images * 2)
        cells *= 2;
    *table = (struct image_table){.mask = cells - 1, .max_images = max_images};
    table->images = populated_calloc(max_images, sizeof *table->images);
    table->by_node = populated_calloc(cells, sizeof *table->by_node);
    table->free = populated_calloc(max_images, sizeof *table->free);
    if (table->images && table->by_node && table->free)
        return 0;
    image_table_close(table);
    return -ENOMEM;
}

void image_table_close(struct image_table *table)
{
    free(table->images);
    free(table->by_node);
    free(table->free);
    *table = (struct image_table){0};
}

static uint32_t home(const struct image_table *table, uint64_t node)
{
    return (uint32_t)((node * 0x9E3779B97F4A7C15u) >> 32) & table->mask;
}

/* The cell of node, or the empty one where it belongs. The table is at most half full. */
static uint32_t cell_of(const struct image_table *table, uint64_t node)
{
    uint32_t at = home(table, node);

    while (table->by_node[at] && table->images[table->by_node[at] - 1].node != node)
        at = (at + 1) & table->mask;
    return at;
}

struct image *image_find(struct image_table *table, uint64_t node)
{
    uint32_t slot = table->by_node[cell_of(table, node)];

    return slot ? &table->images[slot - 1] : NULL;
}

struct image *image_add(struct image_table *table, uint64_t node, int *error)
{
    uint32_t at = cell_of(table, node);
    uint32_t slot;
    struct image *image;

    if (table->by_node[at] || node == 0) {
        *error = -EEXIST;
        return NULL;
    }
    if (table->free_count)
        slot = table->free[--table->free_count];
    else if (table->used < table->max_images)
        slot = table->used++;
    else {
        *error = -ENFILE;
        return NULL;
    }
    image = &table->images[slot];
    memset(image, 0, sizeof *image);
    image->node = node;
    table->by_node[at] = slot + 1;
    return image;
}

void image_remove(struct image_table *table, struct image *image)
{
    uint32_t hole = cell_of(table, image->node);

    assert(image->active == 0 && table->by_node[hole]);
    /* Close the gap: move back every later cell of the run that may stand at or before the hole. */
    for (uint32_t at = (hole + 1) & table->mask; table->by_node[at]; at = (at + 1) & table->mask) {
        uint32_t ideal = home(table, table->images[table->by_node[at] - 1].node);

        if (((at - ideal) & table->mask) >= ((at - hole) & table->mask)) {
            table->by_node[hole] = table->by_node[at];
            hole = at;
        }
    }
    table->by_node[hole] = 0;
    image->node = 0;
    table->free[table->free_count++] = (uint32_t)image_slot(table, image);
}

int64_t image_slot(const struct image_table *table, const struct image *image)
{
    return image - table->images;
}

/* ---- the order of requests ---- */

static int overlap(const struct request *a, const struct request *b)
{
    return a->lock_start < b->lock_end && b->lock_start < a->lock_end;
}

static int is_change(const struct request *r)
{
    return r->kind == REQUEST_WRITE || r->kind == REQUEST_FALLOCATE;
}

/* Must `later` wait for `earlier`? The table in image.h. */
static int conflict(const struct request *earlier, const struct request *later)
{
    if (earlier->kind == REQUEST_TRUNCATE || later->kind == REQUEST_TRUNCATE)
        return 1;
    if (earlier->kind == REQUEST_FSYNC)
        return 0;
    if (later->kind == REQUEST_FSYNC)
        return is_change(earlier);
    if (!is_change(earlier) && !is_change(later))
        return 0;
    return overlap(earlier, later);
}

/* Most requests need no search: there is nothing active that they could conflict with. */
static int cannot_conflict(const struct image *image, const struct request *r)
{
    if (image->active_resizes || r->kind == REQUEST_TRUNCATE)
        return 0;
    return !is_change(r) && image->active_writes == 0;
}

/* The newest request before r that r must wait for, or NULL. */
static struct request *blocker(const struct image *image, const struct request *r)
{
    if (cannot_conflict(image, r))
        return NULL;
    for (struct request *earlier = r->older; earlier; earlier = earlier->older)
        if (conflict(earlier, r))
            return earlier;
    return NULL;
}

static int block_or_pass(const struct image *image, struct request *r)
{
    struct request *earlier = blocker(image, r);
    struct request **end;

    if (!earlier)
        return 1;
    r->state = REQUEST_WAITING;
    for (end = &earlier->waiters; *end; end = &(*end)->next)
        ;
    r->next = NULL;
    *end = r;
    return 0;
}

static void count_active(struct image *image, const struct request *r, unsigned by)
{
    image->active += by;
    image->active_writes += is_change(r) ? by : 0;
    image->active_resizes += r->kind == REQUEST_TRUNCATE ? by : 0;
    image->counters->in_flight = image->active;
}

int image_enter(struct image *image, struct request *r)
{
    r->image = image;
    r->newer = NULL;
    r->older = image->newest;
    if (image->newest)
        image->newest->newer = r;
    else
        image->oldest = r;
    image->newest = r;
    if (r->kind == REQUEST_FSYNC || r->kind == REQUEST_FALLOCATE || r->kind == REQUEST_TRUNCATE)
        image->epoch++;
    r->epoch = image->epoch;
    count_active(image, r, 1);
    if (block_or_pass(image, r))
        return 1;
    image->counters->waits++;
    return 0;
}

struct request *image_leave(struct image *image, struct request *r)
{
    struct request *waiting = r->waiters;
    struct request *free_to_go = NULL, **end = &free_to_go;

    if (r->older)
        r->older->newer = r->newer;
    else
        image->oldest = r->newer;
    if (r->newer)
        r->newer->older = r->older;
    else
        image->newest = r->older;
    count_active(image, r, -1u);
    r->waiters = NULL;
    while (waiting) {
        struct request *next = waiting->next;

        waiting->next = NULL;
        if (block_or_pass(image, waiting)) {
            *end = waiting;
            end = &waiting->next;
        }
        waiting = next;
    }
    return free_to_go;
}

int64_t image_size(const struct image *image)
{
    struct stat st;
    uint64_t bytes;

    if (image->flags & AIOFS_IMAGE_BLOCKDEV)
        return ioctl(image->fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
    return fstat(image->fd, &st) < 0 ? -errno : st.st_size;
}
