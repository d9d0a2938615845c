/* fault.c -- the drivers that fail on purpose, one around each of the others: `fault:NAME` serves through
 * NAME, and delays, fails, shortens and reorders ios on their way, as fault_plan.c says. For tests of aiofs
 * and of what people run above it; never chosen by itself.
 *
 * Around a whole queue, not the bare driver: what NAME leaves to `threads` (an fdatasync under `linux`)
 * meets its faults as well.
 *
 * Threads: one (driver.h).
 * States of an io: held (not due yet, or everything is) -> started (the inner queue's) -> finished -> handed
 * out by reap; one that fails is not started, and finishes when it is due.
 * Invariants: each accepted io has a slot, and a place in the list of those in flight until it is handed
 * out. The inner queue gets a copy, so the caller's io and vector stay as they are. `held` is in the order of
 * being due; the timer rings for its first. All waits are events of one epoll descriptor; nothing sleeps here.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "fault_plan.h"
#include "queue.h"

/* O_DIRECT takes whole blocks: what is cut is cut there (no served image has larger ones). */
#define BLOCK 4096

/* What a short read leaves in the bytes that it does not answer for. */
#define RUBBISH 0xdb

struct slot {
    struct io inner; /* first: what the inner queue gives back is its slot */
    struct io *io;   /* the caller's */
    struct iovec *segments; /* of a write that is cut; IO_SEGMENTS_MAX of them */
    struct fault_verdict verdict;
    int64_t due_ns;
    int64_t start, end; /* bytes that it needs to itself when it, or who meets it there, changes them */
    dev_t device;
    ino_t inode;
    struct slot *next;          /* of those that are free, or held */
    struct slot *newer, *older; /* of those in flight */
};

struct aio {
    struct queue *inner;
    unsigned depth, in_flight;
    int epoll_fd, event_fd, timer_fd;
    int64_t armed_ns;         /* when the timer rings, or has rung */
    int64_t stalled_until_ns; /* nothing starts before */
    struct slot *slots;
    struct iovec *segments;
    struct slot *free, *held, *newest;
    struct slot **finished; /* a ring of depth, from first_finished on */
    unsigned first_finished, finished_count;
    struct slot **due; /* room for depth */
    struct io **batch; /* room for depth */
};

/* ---- open and close ---- */

static void fault_close(struct aio *aio)
{
    fault_plan_forget(aio->event_fd);
    if (aio->inner != NULL)
        queue_close(aio->inner);
    const int fds[] = {aio->epoll_fd, aio->event_fd, aio->timer_fd};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(aio->slots);
    free(aio->segments);
    free(aio->finished);
    free(aio->due);
    free(aio->batch);
    free(aio);
}

static int allocate(struct aio *aio)
{
    aio->slots = calloc(aio->depth, sizeof *aio->slots);
    /* Those that no write needs are never touched, and never backed by memory. */
    aio->segments = calloc((size_t)aio->depth * IO_SEGMENTS_MAX, sizeof *aio->segments);
    aio->finished = calloc(aio->depth, sizeof(struct slot *));
    aio->due = calloc(aio->depth, sizeof(struct slot *));
    aio->batch = calloc(aio->depth, sizeof(struct io *));
    if (!aio->slots || !aio->segments || !aio->finished || !aio->due || !aio->batch)
        return -ENOMEM;
    for (unsigned i = aio->depth; i-- > 0;) {
        aio->slots[i].segments = aio->segments + (size_t)i * IO_SEGMENTS_MAX;
        aio->slots[i].next = aio->free;
        aio->free = &aio->slots[i];
    }
    return 0;
}

/* One descriptor for the inner queue's events, the timer and our own. */
static int watch(struct aio *aio)
{
    int fds[4];
    int n = queue_event_fds(aio->inner, fds);
    aio->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    aio->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (aio->epoll_fd < 0 || aio->event_fd < 0 || aio->timer_fd < 0)
        return -errno;
    fds[n++] = aio->event_fd;
    fds[n++] = aio->timer_fd;
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET};
        if (epoll_ctl(aio->epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0)
            return -errno;
    }
    return fault_plan_watch(aio->event_fd);
}

static int fault_open(struct aio **out, const struct driver *driver, unsigned depth)
{
    struct aio *aio = calloc(1, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    aio->depth = depth;
    aio->epoll_fd = aio->event_fd = aio->timer_fd = -1;
    int error = allocate(aio);
    if (error == 0)
        error = queue_open(&aio->inner, driver, depth);
    if (error == 0)
        error = watch(aio);
    if (error < 0) {
        fault_close(aio);
        return error;
    }
    *out = aio;
    return 0;
}

static int fault_attach(struct aio *aio, int fd)
{
    return queue_attach(aio->inner, fd);
}

static void fault_detach(struct aio *aio, int file)
{
    queue_detach(aio->inner, file);
}

static int fault_event_fd(struct aio *aio)
{
    return aio->epoll_fd;
}

/* ---- overlaps ---- */

static bool changes(const struct io *io)
{
    return io->op == IO_WRITE || io->op == IO_FALLOCATE || io->op == IO_TRUNCATE;
}

static void set_range(struct slot *slot)
{
    const struct io *io = slot->io;
    struct stat st = {0};
    /* The file, not the descriptor: an image has two. */
    (void)fstat(io->fd, &st);
    slot->device = st.st_dev;
    slot->inode = st.st_ino;
    slot->start = io->op == IO_TRUNCATE ? 0 : io->offset;
    slot->end = io->op == IO_TRUNCATE ? INT64_MAX : io->offset + fault_plan_length(io);
}

/* Storage gives no order between overlapping ios in flight, so there must never be any with one that
 * changes bytes. */
static bool overlaps_one_in_flight(const struct aio *aio, const struct slot *slot)
{
    for (const struct slot *other = aio->newest; other != NULL; other = other->older)
        if (other->start < slot->end && slot->start < other->end && other->inode == slot->inode &&
            other->device == slot->device && (changes(other->io) || changes(slot->io)))
            return true;
    return false;
}

/* ---- slots ---- */

static struct slot *take_slot(struct aio *aio, struct io *io)
{
    struct slot *slot = aio->free;
    aio->free = slot->next;
    aio->in_flight++;
    slot->io = io;
    return slot;
}

static void enter(struct aio *aio, struct slot *slot)
{
    slot->newer = NULL;
    slot->older = aio->newest;
    if (aio->newest != NULL)
        aio->newest->newer = slot;
    aio->newest = slot;
}

/* Its io is the caller's again. */
static void give_back(struct aio *aio, struct slot *slot)
{
    if (slot->older != NULL)
        slot->older->newer = slot->newer;
    if (slot->newer != NULL)
        slot->newer->older = slot->older;
    else
        aio->newest = slot->older;
    slot->next = aio->free;
    aio->free = slot;
    aio->in_flight--;
}

static void hold(struct aio *aio, struct slot *slot)
{
    struct slot **link = &aio->held;
    while (*link != NULL && (*link)->due_ns <= slot->due_ns)
        link = &(*link)->next;
    slot->next = *link;
    *link = slot;
}

/* ---- start and finish ---- */

static void finish(struct aio *aio, struct slot *slot, int64_t result)
{
    unsigned place = fault_plan_shuffle(aio->finished_count + 1);
    struct slot **ring = aio->finished;
    unsigned last = (aio->first_finished + aio->finished_count++) % aio->depth;
    slot->io->result = result;
    place = (aio->first_finished + place) % aio->depth;
    ring[last] = ring[place];
    ring[place] = slot;
}

/* Cut the copy's vector to `bytes`. */
static void cut(struct slot *slot, int64_t bytes)
{
    int count = 0;
    for (; bytes > 0; count++) {
        struct iovec segment = slot->io->iov[count];
        if ((int64_t)segment.iov_len > bytes)
            segment.iov_len = (size_t)bytes;
        slot->segments[count] = segment;
        bytes -= (int64_t)segment.iov_len;
    }
    slot->inner.iov = slot->segments;
    slot->inner.iovcnt = count;
}

/* The copy that the inner queue gets. A read is done whole and a part of it told; a write is done no further
 * than told, but to the end of that block where it has to be whole blocks. */
static struct io *prepare(struct slot *slot)
{
    int64_t bytes = slot->verdict.value;
    slot->inner = *slot->io;
    if (slot->verdict.fate == FAULT_SHORT && slot->io->op == IO_WRITE) {
        int64_t length = fault_plan_length(slot->io);
        if (fcntl(slot->io->fd, F_GETFL) & O_DIRECT)
            bytes = (bytes + BLOCK - 1) / BLOCK * BLOCK;
        cut(slot, bytes < length ? bytes : length);
    }
    return &slot->inner;
}

/* Nobody may take the rest of a short read for data. */
static void spoil(const struct io *io, int64_t bytes)
{
    for (int i = 0; i < io->iovcnt; i++) {
        int64_t length = (int64_t)io->iov[i].iov_len;
        if (bytes < length)
            memset((char *)io->iov[i].iov_base + bytes, RUBBISH, (size_t)(length - bytes));
        bytes = bytes < length ? 0 : bytes - length;
    }
}

static int64_t told(const struct slot *slot)
{
    int64_t limit = slot->verdict.value;
    if (slot->verdict.fate != FAULT_SHORT || slot->inner.result <= limit)
        return slot->inner.result;
    if (slot->io->op == IO_READ)
        spoil(slot->io, limit);
    return limit;
}

static void arm(struct aio *aio, int64_t at_ns)
{
    struct itimerspec when = {.it_value = {.tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000}};
    if (aio->armed_ns == at_ns)
        return;
    aio->armed_ns = at_ns;
    (void)timerfd_settime(aio->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Those that are due, as one batch. */
static void start(struct aio *aio, int n)
{
    int ios = 0;
    for (int i = 0; i < n; i++) {
        struct slot *slot = aio->due[i];
        /* Nothing is done: an error, or short by all of it. */
        if (slot->verdict.fate != FAULT_NONE && slot->verdict.value <= 0)
            finish(aio, slot, slot->verdict.value);
        else
            aio->batch[ios++] = prepare(slot);
    }
    int accepted = queue_submit(aio->inner, aio->batch, ios);
    assert(accepted == ios);
}

static void start_due(struct aio *aio)
{
    if (aio->held == NULL || fault_plan_held())
        return; /* to be rung for when it ends */
    int64_t now_ns = clock_ns();
    if (now_ns < aio->stalled_until_ns) {
        arm(aio, aio->stalled_until_ns);
        return;
    }
    int n = 0;
    while (aio->held != NULL && aio->held->due_ns <= now_ns) {
        unsigned place = fault_plan_shuffle((unsigned)n + 1);
        struct slot *slot = aio->held;
        aio->held = slot->next;
        aio->due[n++] = aio->due[place];
        aio->due[place] = slot;
    }
    if (n > 0)
        start(aio, n);
    if (aio->held != NULL)
        arm(aio, aio->held->due_ns);
}

static int fault_submit(struct aio *aio, struct io *const *ios, int n)
{
    int accepted = 0;
    while (accepted < n && aio->in_flight < aio->depth) {
        struct slot *slot = take_slot(aio, ios[accepted++]);
        set_range(slot);
        slot->verdict = fault_plan_judge(slot->io, (uint32_t)n, overlaps_one_in_flight(aio, slot));
        enter(aio, slot);
        int64_t now_ns = clock_ns();
        slot->due_ns = now_ns + slot->verdict.delay_ns;
        if (slot->verdict.stall_ns > 0 && now_ns + slot->verdict.stall_ns > aio->stalled_until_ns)
            aio->stalled_until_ns = now_ns + slot->verdict.stall_ns;
        hold(aio, slot);
    }
    start_due(aio);
    if (aio->finished_count > 0)
        (void)eventfd_write(aio->event_fd, 1);
    return accepted;
}

static void collect(struct aio *aio)
{
    struct io *some[64];
    int n;
    do {
        n = queue_reap(aio->inner, some, 64);
        for (int i = 0; i < n; i++) {
            struct slot *slot = (struct slot *)some[i];
            finish(aio, slot, told(slot));
        }
    } while (n == 64);
}

static int fault_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    start_due(aio);
    collect(aio);
    while (n < max && aio->finished_count > 0) {
        struct slot *slot = aio->finished[aio->first_finished];
        aio->first_finished = (aio->first_finished + 1) % aio->depth;
        aio->finished_count--;
        out[n++] = slot->io;
        give_back(aio, slot);
    }
    return n;
}

static bool unlink_held(struct aio *aio, const struct slot *slot)
{
    for (struct slot **link = &aio->held; *link != NULL; link = &(*link)->next)
        if (*link == slot) {
            *link = slot->next;
            return true;
        }
    return false;
}

static int fault_cancel(struct aio *aio, struct io *io)
{
    struct slot *slot = aio->newest;
    while (slot != NULL && slot->io != io)
        slot = slot->older;
    if (slot == NULL || (!unlink_held(aio, slot) && queue_cancel(aio->inner, &slot->inner) < 0))
        return -EALREADY;
    give_back(aio, slot);
    return 0;
}

#define FAULT_DRIVER(around)                                                    \
    static int around##_probe(char *why, size_t size)                           \
    {                                                                           \
        return driver_##around.probe(why, size);                                \
    }                                                                           \
    static int around##_open(struct aio **out, unsigned depth)                  \
    {                                                                           \
        return fault_open(out, &driver_##around, depth);                        \
    }                                                                           \
    const struct driver driver_fault_##around = {                               \
        .name = "fault:" #around,                                               \
        .description = "for tests: " #around " that delays and fails on purpose", \
        .operations = OPERATIONS_ALL,                                           \
        .probe = around##_probe,                                                \
        .open = around##_open,                                                  \
        .attach = fault_attach,                                                 \
        .detach = fault_detach,                                                 \
        .submit = fault_submit,                                                 \
        .event_fd = fault_event_fd,                                             \
        .reap = fault_reap,                                                     \
        .cancel = fault_cancel,                                                 \
        .close = fault_close,                                                   \
    };

FAULT_DRIVER(io_uring)
FAULT_DRIVER(linux)
FAULT_DRIVER(threads)
FAULT_DRIVER(posix)
FAULT_DRIVER(sync)
