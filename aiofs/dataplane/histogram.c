/* histogram.c -- see histogram.h. */
#include "histogram.h"

/* A quarter of a microsecond: the width of the first buckets, 1.25 us being the second limit. */
#define UNIT_NS 250u

#define PER_DOUBLING 4u

/* Buckets 0 (up to 1 us) and the last (above the last limit) are the two that are no quarters. */
#define LAST (AIOFS_LATENCY_BUCKETS - 1u)

unsigned histogram_bucket(uint64_t ns)
{
    uint64_t units;
    unsigned doubling, bucket;

    if (ns <= PER_DOUBLING * UNIT_NS)
        return 0;
    units = (ns - 1) / UNIT_NS; /* less one: the upper limit belongs to the bucket */
    doubling = 61u - (unsigned)__builtin_clzll(units); /* 0 for 4 to 7 units */
    bucket = 1 + doubling * PER_DOUBLING + (unsigned)(units >> doubling) - PER_DOUBLING;
    return bucket < LAST ? bucket : LAST;
}

uint64_t histogram_limit(unsigned bucket)
{
    unsigned doubling, quarter;

    if (bucket == 0)
        return PER_DOUBLING * UNIT_NS;
    if (bucket >= LAST)
        return UINT64_MAX;
    doubling = (bucket - 1) / PER_DOUBLING;
    quarter = (bucket - 1) % PER_DOUBLING;
    return (uint64_t)(PER_DOUBLING + quarter + 1) * UNIT_NS << doubling;
}

void histogram_add(aiofs_latency *latency, int64_t ns)
{
    latency->sum_ns += (uint64_t)ns;
    latency->buckets[histogram_bucket((uint64_t)ns)]++;
}
