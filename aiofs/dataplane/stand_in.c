/* stand_in.c -- see stand_in.h. */
#include "stand_in.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "clock.h"
#include "plane.h"

enum { ABSENT, FREE, WORKS, WAITS };

#define STACK_BYTES ((size_t)256 << 10)
#define STACK_USED ((size_t)64 << 10)

static void ring(struct aiofs_plane *plane)
{
    (void)eventfd_write(plane->wake_fd, 1);
}

/* ---- its thread ---- */

static int try_turn(struct aiofs_plane *plane)
{
    if (pthread_mutex_trylock(&plane->stand_in.turn))
        return 0;
    plane->replies.elsewhere = 1;
    return 1;
}

static void end_turn(struct aiofs_plane *plane)
{
    plane->replies.elsewhere = 0;
    pthread_mutex_unlock(&plane->stand_in.turn);
}

static int is_quiet(struct aiofs_plane *plane)
{
    return !plane->fuse_ready && !plane->forward_ready && !plane->control_ready && !plane->stuck &&
           !plane_is_stopping(plane);
}

/* Sleep in the loop's stead. Returns whether the turn is still ours; if not, the loop has what came. */
static int wait_for_events(struct aiofs_plane *plane)
{
    struct stand_in *self = &plane->stand_in;
    struct epoll_event events[PLANE_EVENTS];
    int64_t start = clock_ns();
    unsigned set = 0;
    int n;

    atomic_store(&self->state, WAITS);
    end_turn(plane);
    n = epoll_wait(plane->epoll_fd, events, PLANE_EVENTS, -1);
    atomic_store(&self->state, WORKS);
    for (int i = 0; i < n; i++)
        set |= 1u << events[i].data.u32;
    if (!try_turn(plane)) {
        atomic_fetch_or(&self->events, set);
        return 0;
    }
    plane_note_events(plane, set);
    plane->counters.sleeps++;
    waiting_note(&plane->waiting, clock_ns() - start, 0, 0);
    return 1;
}

/* The next io that we can do; NULL: something else is to be done, by the loop, or nothing. */
static struct io *next_io(struct aiofs_plane *plane)
{
    /* It is alone only if there is no other message behind it: the second drain asks. */
    if (drain_messages(plane))
        drain_messages(plane);
    return plane->in_work == 1 && plane->ready && is_quiet(plane) ? batch_take_for_thread(plane) : NULL;
}

/* With the turn: wait for the next io that we can do. Without the turn then; NULL: the loop is to go on. */
static struct io *stand_in(struct aiofs_plane *plane)
{
    struct io *io = NULL;

    while (!io && !plane->in_work && is_quiet(plane) && !plane_looks(plane)) {
        if (!wait_for_events(plane))
            return NULL;
        io = next_io(plane);
    }
    end_turn(plane);
    return io;
}

/* Do an io, and answer if the loop sleeps. Returns the next io to do, or NULL. */
static struct io *carry_out(struct aiofs_plane *plane, struct io *io)
{
    int64_t start = clock_ns();

    io->result = io_perform(io);
    if (!try_turn(plane)) {
        atomic_store(&plane->stand_in.returned, io);
        return NULL;
    }
    waiting_note(&plane->waiting, clock_ns() - start, 1, 0);
    plane->counters.stood_in++;
    serve_finished(plane, io);
    serve_answer(plane);
    return stand_in(plane);
}

static void *run(void *argument)
{
    struct aiofs_plane *plane = argument;
    struct stand_in *self = &plane->stand_in;

    pthread_setname_np(pthread_self(), "aiofs-stand-in");
    populate_stack(STACK_USED);
    for (;;) {
        while (sem_wait(&self->errands) < 0)
            ; /* EINTR */
        if (atomic_load(&self->ends))
            return NULL;
        for (struct io *io = self->io; io;)
            io = carry_out(plane, io);
        atomic_store(&self->state, FREE);
        ring(plane);
    }
}

/* ---- the loop's side ---- */

void stand_in_start(struct aiofs_plane *plane)
{
    struct stand_in *self = &plane->stand_in;
    pthread_attr_t attr;

    sem_init(&self->errands, 0, 0);
    pthread_mutex_init(&self->turn, NULL);
    pthread_mutex_lock(&self->turn);
    if (pthread_attr_init(&attr))
        return;
    if (!pthread_attr_setstacksize(&attr, STACK_BYTES) && !pthread_create(&self->thread, &attr, run, plane))
        atomic_store(&self->state, FREE);
    pthread_attr_destroy(&attr);
}

void stand_in_stop(struct aiofs_plane *plane)
{
    struct stand_in *self = &plane->stand_in;

    atomic_store(&self->ends, 1);
    if (atomic_load(&self->state) != ABSENT) {
        sem_post(&self->errands);
        ring(plane); /* in case it waits for messages: it alone does now */
        pthread_join(self->thread, NULL);
    }
    pthread_mutex_unlock(&self->turn);
    pthread_mutex_destroy(&self->turn);
    sem_destroy(&self->errands);
}

int stand_in_is_free(struct aiofs_plane *plane)
{
    int state = atomic_load(&plane->stand_in.state);

    if (state == WAITS)
        ring(plane);
    return state == FREE;
}

void stand_in_send(struct aiofs_plane *plane, struct io *io)
{
    plane->stand_in.io = io;
    atomic_store(&plane->stand_in.state, WORKS);
    sem_post(&plane->stand_in.errands);
}

void stand_in_give_turn(struct aiofs_plane *plane)
{
    pthread_mutex_unlock(&plane->stand_in.turn);
}

void stand_in_take_turn(struct aiofs_plane *plane)
{
    pthread_mutex_lock(&plane->stand_in.turn);
}

struct io *stand_in_returned(struct aiofs_plane *plane)
{
    /* The load first: an exchange would take the cache line on every look. */
    return atomic_load(&plane->stand_in.returned) ? atomic_exchange(&plane->stand_in.returned, NULL) : NULL;
}

unsigned stand_in_events(struct aiofs_plane *plane)
{
    return atomic_load(&plane->stand_in.events) ? atomic_exchange(&plane->stand_in.events, 0) : 0;
}
