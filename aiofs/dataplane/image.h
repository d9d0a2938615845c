/* image.h -- registered images: found by node, and the order of the requests in work on each.
 *
 * The active list of an image holds its requests in the order of arrival until they are answered. A
 * request that conflicts with an earlier active one waits for it, whether that one runs or waits
 * itself, so overlapping requests take effect in the order in which they came.
 *
 *   conflicts with an earlier | READ     WRITE    FSYNC  TRUNCATE
 *   a READ                    | -        overlap  -      yes
 *   a WRITE                   | overlap  overlap  -      yes
 *   an FSYNC                  | -        yes      -      yes
 *   a TRUNCATE                | yes      yes      yes    yes
 *
 * A FALLOCATE counts as a WRITE, an LSEEK as a READ; space.h has the ranges that they lock.
 *
 * An FSYNC has to cover the WRITEs answered before it, and those have completed; it waits for all that
 * arrived before it, which is a little more than it must (drives and QEMU do the same).
 */
#ifndef AIOFS_IMAGE_H
#define AIOFS_IMAGE_H

#include <stdint.h>

#include "contract.h"
#include "lumps.h"
#include "queue.h"
#include "request.h"

struct image {
    uint64_t node; /* 0: the slot is free */
    int fd, tail_fd;
    uint32_t flags, block_size;
    struct queue *queue;
    struct queue *wide_queue; /* for reads of more than a block; mostly the same */
    int file, wide_file;      /* fd in each of the two */
    struct request *oldest, *newest; /* the active list */
    unsigned active, active_writes, active_resizes; /* writes: FALLOCATEs, too */
    uint64_t epoch;          /* counts FSYNCs, FALLOCATEs and resizes: nothing is merged across one */
    int64_t sticky_error;    /* -errno of a failed fsync, until the last close */
    uint64_t unregister_id;  /* the command to answer when the last request is done; 0: none */
    aiofs_image_counters *counters; /* the control plane's memory */
    uint64_t handle;         /* of all its opens */
    struct lumps lumps;
    uint64_t last_batch;     /* of the plane's batches, the last that carried an io of it */
};

struct image_table {
    struct image *images; /* by slot */
    uint32_t *by_node;    /* hash table of slot + 1; 0: empty */
    uint32_t mask, max_images, used; /* used: slots that were ever in use */
    uint32_t *free;       /* slots given back */
    uint32_t free_count;
};

/* 0, or -ENOMEM. */
int image_table_open(struct image_table *table, uint32_t max_images);
void image_table_close(struct image_table *table);

/* A new image for node, all zero but node. NULL with *error -EEXIST or -ENFILE. */
struct image *image_add(struct image_table *table, uint64_t node, int *error);
void image_remove(struct image_table *table, struct image *image); /* has no active requests */
struct image *image_find(struct image_table *table, uint64_t node); /* NULL: not registered */
int64_t image_slot(const struct image_table *table, const struct image *image);

/* Enter r, its lock range set, at the end of its image's active list. Returns 1 when it may go on now,
 * 0 when it waits (state WAITING, linked to the request that blocks it). */
int image_enter(struct image *image, struct request *r);

/* Take r off the list. Those that waited for r and may go on now are returned, linked by `next` in
 * order of arrival. */
struct request *image_leave(struct image *image, struct request *r);

/* The size in bytes now, or -errno: of the file, or of the block device. */
int64_t image_size(const struct image *image);

#endif
