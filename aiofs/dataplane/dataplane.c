/* dataplane.c -- the loop: drain, submit, reap, and one wait for everything.
 *
 * One thread runs aiofs_run from beginning to end and never holds Python's GIL. It sleeps in one
 * epoll_wait, without a timeout, on the kernel's descriptor, the control plane's two sockets, the
 * drivers' events and the stop event. All are edge-triggered: *_ready says which may have more. While it sleeps, another
 * thread may work in its place (stand_in.h).
 *
 * Nothing is delayed in the hope of a better batch. While the device works, requests gather in the
 * kernel, and the next drain finds them all; or on the ready list, where the device reports in lumps (lumps.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "histogram.h"
#include "plane.h"

/* ---- open and close ---- */

static int watch(struct aiofs_plane *plane, int fd, uint32_t events, uint32_t what)
{
    struct epoll_event event = {.events = events | EPOLLET, .data.u32 = what};

    return epoll_ctl(plane->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int watch_all(struct aiofs_plane *plane)
{
    const int fds[] = {plane->config.fuse_fd, plane->config.forward_fd, plane->config.control_fd};
    int error = 0;

    for (int i = 0; i < 3 && !error; i++) {
        int flags = fcntl(fds[i], F_GETFL);

        if (flags < 0 || fcntl(fds[i], F_SETFL, flags | O_NONBLOCK) < 0)
            error = -errno;
    }
    if (!error)
        error = watch(plane, fds[0], EPOLLIN, WATCH_FUSE);
    if (!error)
        error = watch(plane, fds[1], EPOLLIN, WATCH_FORWARD);
    if (!error)
        error = watch(plane, fds[2], EPOLLIN, WATCH_CONTROL);
    return error ? error : watch(plane, plane->wake_fd, EPOLLIN, WATCH_WAKE);
}

static int allocate(struct aiofs_plane *plane)
{
    unsigned requests = plane->config.queue_depth + RESIZES_MAX;
    int error;

    plane->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    plane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (plane->epoll_fd < 0 || plane->wake_fd < 0)
        return -errno;
    error = request_pool_open(&plane->pool, plane->config.queue_depth, RESIZES_MAX, plane->wake_fd);
    if (!error)
        error = image_table_open(&plane->images, plane->config.max_images);
    if (error)
        return error;
    plane->merge = merge_new(requests);
    plane->spans = populated_calloc(requests, sizeof *plane->spans);
    plane->heads = populated_calloc(requests, sizeof *plane->heads);
    plane->batch = populated_calloc(requests, sizeof(struct request *));
    plane->ios = populated_calloc(requests, sizeof(struct io *));
    plane->reply = populated_calloc(1, REPLY_MAX);
    if (!plane->merge || !plane->spans || !plane->heads || !plane->batch || !plane->ios || !plane->reply)
        return -ENOMEM;
    error = outbox_open(&plane->up, plane->config.forward_fd, plane->wake_fd, UP_SIZE);
    return error ? error
                 : outbox_open(&plane->answers, plane->config.control_fd, plane->wake_fd, control_outbox_size(plane));
}

int32_t aiofs_open(aiofs_plane **out, const aiofs_config *config)
{
    struct aiofs_plane *plane;
    int error;

    if (config->queue_depth < 1 || config->queue_depth > 4096)
        return -EINVAL;
    if (config->max_images < 1 || config->max_images > 1u << 20)
        return -EINVAL;
    if (config->init_size > INIT_MESSAGE_MAX || (config->init_size && !config->init))
        return -EINVAL;
    plane = populated_calloc(1, sizeof *plane);
    if (!plane)
        return -ENOMEM;
    plane->config = *config;
    plane->epoll_fd = plane->wake_fd = -1;
    naps_open(&plane->naps);
    plane->ready_end = &plane->ready;
    plane->finished_end = &plane->finished;
    plane->held = config->held != 0;
    replies_init(&plane->replies, config, &plane->counters.replies_together);
    waiting_init(&plane->waiting, (int64_t)config->look_us * 1000, &waiting_callers,
                 &plane->counters.look_trials);
    if (config->init_size)
        memcpy(plane->init_request, config->init, config->init_size);
    plane->init_request_size = config->init_size;
    error = allocate(plane);
    if (!error)
        error = watch_all(plane);
    if (error) {
        aiofs_close(plane);
        return error;
    }
    *out = plane;
    return 0;
}

void aiofs_close(aiofs_plane *plane)
{
    for (int i = 0; i < QUEUES_MAX; i++)
        if (plane->queues[i])
            queue_close(plane->queues[i]);
    replies_close(&plane->replies);
    outbox_close(&plane->up);
    outbox_close(&plane->answers);
    naps_close(&plane->naps);
    request_pool_close(&plane->pool);
    if (plane->epoll_fd >= 0)
        close(plane->epoll_fd);
    if (plane->wake_fd >= 0)
        close(plane->wake_fd);
    image_table_close(&plane->images);
    merge_free(plane->merge);
    free(plane->spans);
    free(plane->heads);
    free(plane->batch);
    free(plane->ios);
    free(plane->reply);
    free(plane);
}

/* ---- the loop ---- */

void plane_note_events(struct aiofs_plane *plane, unsigned set)
{
    uint64_t drop;

    plane->fuse_ready |= (set & 1u << WATCH_FUSE) != 0;
    plane->forward_ready |= (set & 1u << WATCH_FORWARD) != 0;
    plane->control_ready |= (set & 1u << WATCH_CONTROL) != 0;
    if (set & 1u << WATCH_WAKE)
        (void)!read(plane->wake_fd, &drop, sizeof drop);
    /* A queue: every turn of the loop reaps. */
}

int plane_looks(struct aiofs_plane *plane)
{
    return waiting_looks(&plane->waiting, clock_ns(), plane->counters.requests, plane->last_pid);
}

/* What has come, and what the stand-in took; with `sleep`, when something has. */
static void take_events(struct aiofs_plane *plane, int sleep)
{
    struct epoll_event events[PLANE_EVENTS];
    unsigned set = 0;
    int n;

    if (sleep)
        stand_in_give_turn(plane);
    n = epoll_wait(plane->epoll_fd, events, PLANE_EVENTS, sleep ? -1 : 0);
    if (sleep)
        stand_in_take_turn(plane);
    for (int i = 0; i < n; i++)
        set |= 1u << events[i].data.u32;
    plane_note_events(plane, set | stand_in_events(plane));
}

/* Is there one request, which has just come alone, and nothing else to do or to look at? */
static int is_alone(const struct aiofs_plane *plane)
{
    return plane->cut_short && plane->in_work == 1 && plane->ready && !plane->control_ready && !plane->forward_ready &&
           !plane->stuck;
}

/* There is only one request, and this thread is to sleep. If it is for a thread, that one stands in for us. If not, submit it and
 * sleep in the same call: whoever is woken by the submission (a worker of the kernel that does it) then finds this
 * thread asleep, instead of on the core and about to look at three more descriptors. README.md, "Waiting". */
static int submit_alone(struct aiofs_plane *plane)
{
    /* All but queues, which have nothing in flight. The epoll itself would not do: it gives each edge once, and that of
     * /dev/fuse may be gone while there are more messages. */
    const int fds[WAIT_FDS] = {plane->config.fuse_fd, plane->config.forward_fd, plane->config.control_fd, plane->wake_fd};
    int64_t start;
    struct io *io;
    int mask;

    if (plane_looks(plane))
        return batch_submit(plane);
    io = stand_in_is_free(plane) ? batch_take_for_thread(plane) : NULL;
    if (io) {
        stand_in_send(plane, io);
        return 1;
    }
    start = clock_ns();
    mask = batch_submit_and_wait(plane, fds);
    if (mask < 0) /* not with this driver */
        return 1;
    plane->counters.sleeps++;
    if (mask & ~1)
        take_events(plane, 0);
    waiting_note(&plane->waiting, clock_ns() - start, 1, plane->by_kernel);
    plane->cut_short = 0;
    plane->come_alone = !(mask & 1);
    return 1;
}

/* Do all that can be done now. Returns 0 when there was nothing. */
static int work(struct aiofs_plane *plane)
{
    int done = 0;

    if (plane->control_ready)
        done += control_commands(plane);
    done += forward_stuck(plane);
    if (plane->forward_ready)
        done += forward_replies(plane);
    if (plane->ready) /* held back: the device may be free for it now */
        done += serve_reap(plane) + batch_submit(plane);
    done += drain_messages(plane);
    done += is_alone(plane) ? submit_alone(plane) : batch_submit(plane);
    if (plane->in_work && serve_reap(plane))
        done += batch_submit(plane);
    if (serve_answer(plane)) {
        plane->fuse_ready = 1; /* who has been answered may have sent the next request by now */
        done = 1;
    }
    return done;
}

/* Is there a process that sleeps until we answer, on a core that has nothing else to do? A kernel thread has work for others
 * there, which the kernel spreads over cores that are idle, and one that is kept awake is not (README.md). */
static int caller_waits(const struct aiofs_plane *plane)
{
    return plane->come_alone && plane->in_work <= 1 && !plane->waiting.keeps_core;
}

/* Look for work a little longer instead of sleeping (waiting.h has when). Returns 1 when work was found (and done). */
static int look(struct aiofs_plane *plane, int64_t start)
{
    if (caller_waits(plane))
        vigil_keep(&plane->vigil, start, plane->last_pid);
    do {
        plane->fuse_ready = 1;
        if (work(plane)) {
            plane->counters.looks++;
            return 1;
        }
        /* A kernel thread that finishes our I/O (a file system's checksums, a loop device) may want this
         * very core, and would wait for the end of our slice. */
        sched_yield();
    } while (clock_ns() - start < plane->waiting.limit_ns);
    return 0;
}

static void wait_for_work(struct aiofs_plane *plane)
{
    int64_t start = clock_ns();
    int looks = plane_looks(plane);
    int on_device = plane->in_work != 0;
    int is_lone = plane->come_alone && plane->in_work == 1 && plane->by_kernel;

    if (!looks || !look(plane, start)) {
        take_events(plane, 1);
        plane->counters.sleeps++;
    }
    waiting_note(&plane->waiting, clock_ns() - start, on_device, is_lone);
}

/* Of the stack, far more than the loop ever uses. */
#define STACK_USED ((size_t)64 << 10)

int32_t aiofs_run(aiofs_plane *plane)
{
    sigset_t all;

    pthread_setname_np(pthread_self(), "aiofs-loop");
    populate_stack(STACK_USED);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    replies_start(&plane->replies);
    stand_in_start(plane);
    vigil_start(&plane->vigil);
    plane->fuse_ready = plane->forward_ready = plane->control_ready = 1;
    if (plane->init_request_size)
        plane->failed = forward_replay_init(plane);
    for (;;) {
        int done = work(plane);

        if (plane_is_stopping(plane) && !plane->in_work)
            break;
        if (!done)
            wait_for_work(plane);
    }
    vigil_stop(&plane->vigil);
    stand_in_stop(plane);
    outbox_flush(&plane->answers);
    control_end(plane);
    if (plane->failed)
        return plane->failed;
    return plane->unmounted ? 0 : 1;
}

int32_t aiofs_stop(aiofs_plane *plane)
{
    uint64_t one = 1;

    atomic_store(&plane->stop, 1);
    return write(plane->wake_fd, &one, sizeof one) == sizeof one ? 0 : -errno;
}

/* ---- what others may look at ---- */

const aiofs_plane_counters *aiofs_counters(aiofs_plane *plane)
{
    return &plane->counters;
}

uint64_t aiofs_latency_limit(uint32_t bucket)
{
    return histogram_limit(bucket);
}

int32_t aiofs_init_exchange(aiofs_plane *plane, int32_t reply, void *buffer, uint32_t size)
{
    size_t reply_size = atomic_load(&plane->init_reply_size);
    size_t wanted = reply ? reply_size : plane->init_request_size;

    if (!reply_size)
        return -ENODATA;
    if (wanted > size)
        return -ERANGE;
    memcpy(buffer, reply ? plane->init_reply : plane->init_request, wanted);
    return (int32_t)wanted;
}
