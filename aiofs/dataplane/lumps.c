/* lumps.c -- see lumps.h. */
#include "lumps.h"

#include <limits.h>

/* Fewer ios than that are no lump: they finish together by chance, and a device may do so many side by side. A WRITE is often
 * done sooner, when it is in the device's memory: 8 of them were seen to come together that way, and to hold some back
 * cost 4 %. Where they take long, 29 come together. */
#define LUMP_MIN 8u
#define LUMP_MIN_WRITES 16u
/* So many in a row are the device's manner; and no more are remembered, so that a change is soon seen. */
#define SEEN_ENOUGH 3u
#define SEEN_MAX 8u
/* What one that came in parts takes away. */
#define SEEN_LESS 2u

/* What is a lump now. Where they have been seen, half a lump is one. */
static unsigned least(const struct lumps *lumps)
{
    return lumps->has_writes && !lumps_are_seen(lumps) ? LUMP_MIN_WRITES : LUMP_MIN;
}

void lumps_looked(struct lumps *lumps)
{
    if (lumps->finished == 0)
        return;
    if (lumps->finished < lumps->in_flight)
        lumps->seen = lumps->seen > SEEN_LESS ? lumps->seen - SEEN_LESS : 0;
    else if (lumps->in_flight >= least(lumps) && lumps->seen < SEEN_MAX)
        lumps->seen++;
    lumps->in_flight -= lumps->finished;
    lumps->finished = 0;
    lumps->has_writes = 0;
}

int lumps_are_seen(const struct lumps *lumps)
{
    return lumps->seen >= SEEN_ENOUGH;
}

unsigned lumps_room(const struct lumps *lumps, unsigned in_work)
{
    unsigned half = (in_work + 1) / 2;
    unsigned limit = half > LUMP_MIN ? half : LUMP_MIN;

    if (!lumps_are_seen(lumps))
        return UINT_MAX;
    return limit > lumps->in_flight ? limit - lumps->in_flight : 0;
}
