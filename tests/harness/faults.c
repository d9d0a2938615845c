/* faults.c -- see faults.h. */
#include "faults.h"

#include <errno.h>

#include "contract.h"
#include "kernel.h"

void faults_add(int kind, uint64_t op, int64_t value, uint64_t times)
{
    aiofs_fault fault = {.kind = kind, .ops = 1u << op, .value = value, .from = 0, .to = INT64_MAX,
                         .first = 1, .last = times, .chance = 1ull << 32};

    if (aiofs_fault_add(&fault) < 0)
        fail("no room for a fault");
}

void faults_disturb(void)
{
    switch (random_below(4)) {
    case 0:
        faults_add(AIOFS_FAULT_SHORT, random_below(2), one_in(2) ? -1 : 1 + (int64_t)random_below(8192), 2);
        break;
    case 1:
        faults_add(one_in(2) ? AIOFS_FAULT_DELAY : AIOFS_FAULT_STALL, random_below(6),
                   (int64_t)random_below(2000000), 2);
        break;
    default:
        faults_add(AIOFS_FAULT_ERROR, random_below(6), one_in(2) ? -EINTR : -EAGAIN, 1 + random_below(8));
    }
}

void faults_none(void)
{
    aiofs_fault_reset(random_below(UINT32_MAX), one_in(2));
}

void faults_forget(void)
{
    aiofs_fault_counts counts;

    aiofs_fault_read(&counts);
    if (counts.overlaps)
        fail("%lu ios were in flight with others that they overlap", (unsigned long)counts.overlaps);
    faults_none();
}
