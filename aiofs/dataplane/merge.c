/* merge.c -- see merge.h.
 *
 * Each span looks up the span that starts where it ends, in a hash table of starts. That gives chains;
 * a chain is walked once, from its lowest offset, and cut where an io is full. The table is cleared by
 * counting up a generation, so a batch costs time for its own spans only.
 */
#include <assert.h>
#include <stdlib.h>

#include "merge.h"
#include "populate.h"

struct cell {
    uint32_t generation;
    int32_t span;
};

struct merge {
    uint32_t mask; /* of the table's cells, a power of two, at least twice the capacity */
    uint32_t generation;
    uint32_t capacity;
    int32_t *previous; /* per span: the one before it in its chain, or -1 */
    struct cell *cells;
    unsigned char *placed;
};

struct merge *merge_new(uint32_t capacity)
{
    struct merge *m = populated_calloc(1, sizeof *m);
    uint32_t cells = 16;

    if (!m)
        return NULL;
    while (cells < capacity * 2)
        cells *= 2;
    m->mask = cells - 1;
    m->capacity = capacity;
    m->previous = populated_calloc(capacity, sizeof *m->previous);
    m->cells = populated_calloc(cells, sizeof *m->cells);
    m->placed = populated_calloc(capacity, sizeof *m->placed);
    if (!m->previous || !m->cells || !m->placed) {
        merge_free(m);
        return NULL;
    }
    return m;
}

void merge_free(struct merge *m)
{
    if (!m)
        return;
    free(m->previous);
    free(m->cells);
    free(m->placed);
    free(m);
}

static uint32_t hash(uint64_t stream, int64_t offset)
{
    /* Offsets are multiples of powers of two: the multiplication spreads them over the high bits. */
    uint64_t h = ((uint64_t)offset ^ (stream << 48 | stream >> 16)) * 0x9E3779B97F4A7C15u;

    return (uint32_t)(h >> 32);
}

/* The cell of the span that starts at (stream, offset), or the free one where it belongs. */
static struct cell *find(struct merge *m, const struct span *spans, uint64_t stream, int64_t offset)
{
    for (uint32_t at = hash(stream, offset);; at++) {
        struct cell *cell = &m->cells[at & m->mask];

        if (cell->generation != m->generation)
            return cell;
        if (spans[cell->span].offset == offset && spans[cell->span].stream == stream)
            return cell;
    }
}

static void new_generation(struct merge *m)
{
    if (++m->generation != 0)
        return;
    for (uint32_t i = 0; i <= m->mask; i++) /* once in four thousand million batches */
        m->cells[i].generation = 0;
    m->generation = 1;
}

/* Link every span to the one that starts where it ends. Of several that start at one place the first
 * is linked, the others stay by themselves. */
static void link_chains(struct merge *m, struct span *spans, int n)
{
    new_generation(m);
    for (int i = 0; i < n; i++) {
        struct cell *cell = find(m, spans, spans[i].stream, spans[i].offset);

        if (cell->generation != m->generation)
            *cell = (struct cell){m->generation, i};
        spans[i].next = -1;
        m->previous[i] = -1;
        m->placed[i] = 0;
    }
    for (int i = 0; i < n; i++) {
        struct cell *cell = find(m, spans, spans[i].stream, spans[i].offset + spans[i].length);

        /* Two spans may end where one starts (they overlap): it continues the first only. */
        if (cell->generation == m->generation && m->previous[cell->span] < 0) {
            spans[i].next = cell->span;
            m->previous[cell->span] = i;
        }
    }
}

/* Walk one chain from its lowest offset, cut it into ios, and write their heads. */
static int cut(struct merge *m, struct span *spans, int32_t first, int32_t *heads)
{
    uint32_t bytes = 0;
    int count = 0, ios = 0;

    for (int32_t i = first, last = -1; i >= 0; last = i, i = spans[i].next) {
        assert(!m->placed[i]);
        m->placed[i] = 1;
        if (last < 0 || bytes + spans[i].length > MERGE_BYTES_MAX || count == MERGE_SPANS_MAX) {
            if (last >= 0)
                spans[last].next = -1;
            heads[ios++] = i;
            bytes = 0;
            count = 0;
        }
        bytes += spans[i].length;
        count++;
    }
    return ios;
}

int merge_plan(struct merge *m, struct span *spans, int n, int32_t *heads)
{
    int ios = 0;

    assert(n >= 0 && (uint32_t)n <= m->capacity);
    link_chains(m, spans, n);
    for (int i = 0; i < n; i++) {
        int32_t first = i;

        if (m->placed[i])
            continue;
        while (m->previous[first] >= 0)
            first = m->previous[first];
        ios += cut(m, spans, first, heads + ios);
    }
    return ios;
}
