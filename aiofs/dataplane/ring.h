/* ring.h -- what every io_uring of ours needs, beside liburing. */
#ifndef AIOFS_RING_H
#define AIOFS_RING_H

#include <liburing.h>
#include <stdbool.h>

/* Of the newest kind that this kernel has: one thread's, which must be the one that opens it. 0, or -errno. */
int ring_open(struct io_uring *ring, unsigned entries);

/* Have the kernel allocate the memory of `count` operations; it keeps it for later ones. `with_worker`: and create
 * one worker. What the kernel does not take here it will allocate when it is needed. 0, or -errno. */
int ring_warm(struct io_uring *ring, unsigned count, bool with_worker);

/* Forget what the kernel has not consumed of the submission ring. */
void ring_drop_rest(struct io_uring *ring);

#endif
