/* lumps.c -- see lumps.h. */
#include "lumps.h"

#include <limits.h>

/* Fewer ios than that are no lump: they finish together by chance, and a device may do so many side by side. */
#define LUMP_MIN 8u
/* So many in a row are the device's manner; and no more are remembered, so that a change is soon seen. */
#define SEEN_ENOUGH 3u
#define SEEN_MAX 8u
/* What one that came in parts takes away. */
#define SEEN_LESS 2u

void lumps_looked(struct lumps *lumps)
{
    if (lumps->finished == 0)
        return;
    if (lumps->finished < lumps->in_flight || lumps->has_others)
        lumps->seen = lumps->seen > SEEN_LESS ? lumps->seen - SEEN_LESS : 0;
    else if (lumps->in_flight >= LUMP_MIN && lumps->seen < SEEN_MAX)
        lumps->seen++;
    lumps->in_flight -= lumps->finished;
    lumps->finished = 0;
    lumps->has_others = 0;
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
