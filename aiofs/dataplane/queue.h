/* queue.h -- a driver instance made whole: what the driver cannot do, and what is marked as blocking, goes to
 * `threads`, and what it has no room for waits here, in order.
 *
 * The loop uses one queue per driver in use; from Python one is opened through aiofs_queue_* (api.h).
 * Threads: one thread, as for drivers. Allocates at open only.
 */
#ifndef AIOFS_QUEUE_H
#define AIOFS_QUEUE_H

#include "driver.h"

/* 4096 requests (api.h), and what the loop keeps in reserve beside them. */
#define QUEUE_DEPTH_MAX 8192u

struct queue;

/* A queue on `driver` for up to `depth` ios accepted and not yet reaped. Opens a second, small
 * `threads` instance for what is outside driver->operations. 0 and *out, or -errno. */
int queue_open(struct queue **out, const struct driver *driver, unsigned depth);

const struct driver *queue_driver(const struct queue *q);

/* Announce fd; returns the `file` its ios carry (>= 0), or -errno. */
int queue_attach(struct queue *q, int fd);
void queue_detach(struct queue *q, int file);

/* Accept ios[0..n), in order, hand as many as fit to the driver in one batch and keep the rest for
 * later. Returns the accepted prefix; fewer than n only when `depth` is reached. */
int queue_submit(struct queue *q, struct io *const *ios, int n);

/* May an io that is all there is to do, and was told `blocks` or not, be started and waited for in one call? */
int queue_can_wait(const struct queue *q, const struct io *io);
/* Accept it, when nothing is in flight, and sleep until it may be reaped or one of fds can be read (driver.h). Returns a mask of
 * those fds, or -1: it was not accepted. Reap next. */
int queue_submit_and_wait(struct queue *q, struct io *io, const int *fds);

/* Finished ios, up to max; also hands on what was waiting for room. Never blocks. */
int queue_reap(struct queue *q, struct io **out, int max);

/* Edge-triggered readiness, for epoll: queue_events() of them, at most 2. */
int queue_event_fds(struct queue *q, int out[2]);

/* Wait until a reap may return something, or timeout_ms passed (-1: no limit). 0, or -errno (-ETIME,
 * -EINTR). Reap until fewer than max come back first. */
int queue_wait(struct queue *q, int timeout_ms);

/* Accepted and not yet reaped. */
unsigned queue_in_flight(const struct queue *q);

/* Take back an io that is still queued here or in the driver. 0: it is the caller's again; -EALREADY:
 * it runs or has finished, reap will return it. */
int queue_cancel(struct queue *q, struct io *io);

/* Nothing is in flight. */
void queue_close(struct queue *q);

#endif
