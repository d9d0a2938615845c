/* merge.h -- which requests of a batch become one io. Pure: knows no FUSE, no drivers, no descriptors.
 *
 * Rules (each has a property in tests/pure/test_merge.py):
 *   - only spans of one stream are joined: a stream is an image, a direction and an epoch, and an epoch
 *     ends with every FSYNC, FALLOCATE or resize, so nothing is joined across those;
 *   - only exactly adjacent spans: no gap, no overlap;
 *   - at most MERGE_BYTES_MAX bytes and MERGE_SPANS_MAX spans in one io;
 *   - within an io by offset; the ios in the order in which the first span of each came.
 */
#ifndef AIOFS_MERGE_H
#define AIOFS_MERGE_H

#include <stdint.h>

#define MERGE_BYTES_MAX (1u << 20)
#define MERGE_SPANS_MAX 1024

struct span {
    uint64_t stream;
    int64_t offset;  /* bytes */
    uint32_t length; /* bytes, > 0 */
    int32_t next;    /* out: the span that continues this one in the same io, or -1 */
};

struct merge; /* working memory for up to `capacity` spans */

struct merge *merge_new(uint32_t capacity); /* NULL: no memory */
void merge_free(struct merge *m);

/* Fill in spans[].next and write the index of each io's first span to heads[]. Returns the number of
 * ios, 1 .. n for n >= 1. n must not exceed the capacity. O(n). */
int merge_plan(struct merge *m, struct span *spans, int n, int32_t *heads);

#endif
