/* queue.c -- a driver made whole (queue.h): two lanes, the driver's own and one of `threads` for what the
 * driver cannot do, each with a backlog for what its driver had no room for.
 *
 * Threads: one. Allocates at open only.
 * States of an io: in a lane's backlog (linked by io->next, in order) -> the driver's -> reaped.
 * Invariants: in_flight <= depth counts both lanes. A lane's driver is offered nothing new while its
 * backlog holds something older, so each lane starts ios in the order of submission.
 * Files: an io has one `file`, the main driver's. `threads` serves by io->fd alone, so the second lane
 * needs none.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "populate.h"
#include "queue.h"

/* Room in the second lane's driver: as many as its threads run at once. The rest waits in the backlog. */
#define OTHER_DEPTH 64u

struct lane {
    const struct driver *driver;
    struct aio *aio;  /* NULL: this lane is not there, the main one does everything */
    struct io *first; /* the backlog */
    struct io **last;
};

struct queue {
    struct lane main;
    struct lane other;
    unsigned depth;
    unsigned in_flight;
    int epoll_fd;
    bool watching;       /* the drivers' events are in epoll_fd */
    struct io **scratch; /* depth pointers */
};

static int open_lane(struct lane *lane, const struct driver *driver, unsigned depth)
{
    lane->driver = driver;
    lane->last = &lane->first;
    return driver->open(&lane->aio, depth);
}

static void close_lane(struct lane *lane)
{
    if (lane->aio != NULL)
        lane->driver->close(lane->aio);
}

void queue_close(struct queue *q)
{
    assert(q->in_flight == 0);
    close_lane(&q->main);
    close_lane(&q->other);
    if (q->epoll_fd >= 0)
        close(q->epoll_fd);
    free(q->scratch);
    free(q);
}

int queue_open(struct queue **out, const struct driver *driver, unsigned depth)
{
    if (depth < 1 || depth > QUEUE_DEPTH_MAX)
        return -EINVAL;
    struct queue *q = populated_calloc(1, sizeof *q);
    if (q == NULL)
        return -ENOMEM;
    q->depth = depth;
    q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int error = q->epoll_fd < 0 ? -errno : 0;
    q->scratch = populated_calloc(depth, sizeof(struct io *));
    if (error == 0 && q->scratch == NULL)
        error = -ENOMEM;
    if (error == 0)
        error = open_lane(&q->main, driver, depth);
    if (error == 0 && driver->operations != OPERATIONS_ALL)
        error = open_lane(&q->other, &driver_threads, depth < OTHER_DEPTH ? depth : OTHER_DEPTH);
    if (error < 0) {
        queue_close(q);
        return error;
    }
    *out = q;
    return 0;
}

const struct driver *queue_driver(const struct queue *q)
{
    return q->main.driver;
}

int queue_attach(struct queue *q, int fd)
{
    return q->main.driver->attach(q->main.aio, fd);
}

void queue_detach(struct queue *q, int file)
{
    q->main.driver->detach(q->main.aio, file);
}

/* ---- submit ---- */

static void append(struct lane *lane, struct io *io)
{
    io->next = NULL;
    *lane->last = io;
    lane->last = &io->next;
}

/* Ios that the queue has accepted: to the driver what it takes, the rest to the backlog. */
static void hand_on(struct lane *lane, struct io *const *ios, int n)
{
    int taken = 0;
    if (lane->first == NULL)
        taken = lane->driver->submit(lane->aio, ios, n);
    assert(taken >= 0 && taken <= n);
    for (int i = taken; i < n; i++)
        append(lane, ios[i]);
}

static bool can_do(const struct queue *q, const struct io *io)
{
    unsigned needed = 1u << io->op | (io->blocks ? OPERATION_BLOCKING : 0);
    return (q->main.driver->operations & needed) == needed;
}

/* Some ios go to either lane: part them, keeping their order, so that each lane still gets one batch. */
static void hand_on_parted(struct queue *q, struct io *const *ios, int n)
{
    int main = 0;
    for (int i = 0; i < n; i++)
        if (can_do(q, ios[i]))
            q->scratch[main++] = ios[i];
    int both = main;
    for (int i = 0; i < n; i++)
        if (!can_do(q, ios[i]))
            q->scratch[both++] = ios[i];
    if (main > 0)
        hand_on(&q->main, q->scratch, main);
    hand_on(&q->other, q->scratch + main, n - main);
}

int queue_submit(struct queue *q, struct io *const *ios, int n)
{
    unsigned room = q->depth - q->in_flight;
    if (n > 0 && (unsigned)n > room)
        n = (int)room;
    if (n <= 0)
        return 0;
    q->in_flight += (unsigned)n;
    int same = 0;
    while (same < n && can_do(q, ios[same]))
        same++;
    if (same == n)
        hand_on(&q->main, ios, n);
    else
        hand_on_parted(q, ios, n);
    return n;
}

int queue_can_wait(const struct queue *q, const struct io *io)
{
    return q->main.driver->submit_and_wait != NULL && can_do(q, io);
}

int queue_submit_and_wait(struct queue *q, struct io *io, const int *fds)
{
    assert(q->in_flight == 0 && q->main.first == NULL);
    int mask = q->main.driver->submit_and_wait(q->main.aio, io, fds);
    if (mask >= 0)
        q->in_flight++;
    return mask;
}

/* ---- reap ---- */

/* Offer the backlog to the driver, as one batch. */
static void drain_backlog(struct queue *q, struct lane *lane)
{
    int n = 0;
    for (struct io *io = lane->first; io != NULL; io = io->next)
        q->scratch[n++] = io;
    int taken = lane->driver->submit(lane->aio, q->scratch, n);
    /* The driver owns the links of what it took; scratch knows the first of the rest. */
    lane->first = taken < n ? q->scratch[taken] : NULL;
    if (lane->first == NULL)
        lane->last = &lane->first;
}

static int reap_lane(struct queue *q, struct lane *lane, struct io **out, int max)
{
    int n = lane->driver->reap(lane->aio, out, max);
    /* Even when nothing came back: a cancel may have made room. */
    if (lane->first != NULL)
        drain_backlog(q, lane);
    return n;
}

int queue_reap(struct queue *q, struct io **out, int max)
{
    int n = reap_lane(q, &q->main, out, max);
    if (n < max && q->other.aio != NULL)
        n += reap_lane(q, &q->other, out + n, max - n);
    q->in_flight -= (unsigned)n;
    return n;
}

int queue_event_fds(struct queue *q, int out[2])
{
    out[0] = q->main.driver->event_fd(q->main.aio);
    if (q->other.aio == NULL)
        return 1;
    out[1] = q->other.driver->event_fd(q->other.aio);
    return 2;
}

/* The events are put into our epoll at the first wait: a loop with an epoll of its own never waits
 * here, and each epoll that watches an event makes each completion dearer. */
static int watch(struct queue *q)
{
    int fds[2];
    int n = queue_event_fds(q, fds);
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET};
        /* EEXIST: an earlier try got as far as this one, and no further. */
        if (epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0 && errno != EEXIST)
            return -errno;
    }
    q->watching = true;
    return 0;
}

int queue_wait(struct queue *q, int timeout_ms)
{
    struct epoll_event events[2];
    int error = q->watching ? 0 : watch(q);
    if (error < 0)
        return error;
    int n = epoll_wait(q->epoll_fd, events, 2, timeout_ms);
    if (n < 0)
        return -errno;
    return n == 0 ? -ETIME : 0;
}

unsigned queue_in_flight(const struct queue *q)
{
    return q->in_flight;
}

/* ---- cancel ---- */

static bool unlink_backlog(struct lane *lane, struct io *io)
{
    for (struct io **link = &lane->first; *link != NULL; link = &(*link)->next) {
        if (*link != io)
            continue;
        *link = io->next;
        if (*link == NULL)
            lane->last = link;
        return true;
    }
    return false;
}

static bool cancel_in_lane(struct lane *lane, struct io *io)
{
    if (lane->aio == NULL)
        return false;
    if (unlink_backlog(lane, io))
        return true;
    return lane->driver->cancel != NULL && lane->driver->cancel(lane->aio, io) == 0;
}

int queue_cancel(struct queue *q, struct io *io)
{
    if (!cancel_in_lane(&q->main, io) && !cancel_in_lane(&q->other, io))
        return -EALREADY;
    q->in_flight--;
    return 0;
}
