/* histogram.h -- how long requests took, counted in buckets. Pure: no clock, no images.
 *
 * Log-linear: four buckets of equal width for every doubling, from 1 us to 67 s (2^26 us), so a bucket is a
 * fifth of its value wide at most. A bucket holds its upper limit, as the ones of Prometheus do, so that
 * those can be summed up from these exactly. There is no count beside the buckets: their sum is it, also
 * for a reader that comes between two stores.
 */
#ifndef AIOFS_HISTOGRAM_H
#define AIOFS_HISTOGRAM_H

#include <stdint.h>

#include "contract.h"

/* The bucket of a duration. */
unsigned histogram_bucket(uint64_t ns);
/* The longest duration of a bucket in ns; UINT64_MAX for the last one. */
uint64_t histogram_limit(unsigned bucket);
void histogram_add(aiofs_latency *latency, int64_t ns);

#endif
