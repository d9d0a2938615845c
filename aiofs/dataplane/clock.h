/* clock.h -- the clock of the loop. Costs 26 ns where the kernel's vDSO reads the processor's counter. */
#ifndef AIOFS_CLOCK_H
#define AIOFS_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline int64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
