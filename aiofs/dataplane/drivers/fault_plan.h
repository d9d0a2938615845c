/* fault_plan.h -- what the fault drivers are to do to which io, and what they have done (fault_plan.c). */
#ifndef AIOFS_FAULT_PLAN_H
#define AIOFS_FAULT_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "io.h"

/* What is to become of one io. */
struct fault_verdict {
    enum { FAULT_NONE, FAULT_ERROR, FAULT_SHORT } fate;
    int64_t value;    /* ERROR: -errno; SHORT: bytes that are done at most, fewer than asked for */
    int64_t delay_ns; /* it starts so much later */
    int64_t stall_ns; /* from it on, for so long, nothing starts */
};

/* Note an io of a submit of `batch` ios that is about to be accepted, and judge it. Any thread, as all
 * below. */
struct fault_verdict fault_plan_judge(const struct io *io, uint32_t batch, bool overlaps);

/* May ios start? */
bool fault_plan_held(void);

/* A number below `limit`; `limit` - 1 always, unless ios are to be put in any order. */
unsigned fault_plan_shuffle(unsigned limit);

/* An eventfd that is written when ios may start again, and its end. -EMFILE: there are too many. */
int fault_plan_watch(int event_fd);
void fault_plan_forget(int event_fd);

/* What an io moves or covers, in bytes; 0 for fsync, truncate and lseek. */
int64_t fault_plan_length(const struct io *io);

#endif
