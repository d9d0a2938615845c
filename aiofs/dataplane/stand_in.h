/* stand_in.h -- a thread that does a lone io in place, and then stands in for the loop while that sleeps.
 *
 * What a ring cannot do is done by threads. Where such ios come one by one, each would be handed to a worker and back: two
 * switches, a tenth of a write to btrfs. Done in the loop, it would have none, and one hung disk would stop all images. So the
 * loop hands the first one to the stand-in and sleeps. When the io is done, and the loop still sleeps, the stand-in answers,
 * waits for the next message, and does what it asks for, too:
 *
 *   loop      hands over | asleep ....................................... | woken: has the plane to itself again
 *   stand-in             | io | answers, waits for the next message | io, which hangs ...... | hands the io back
 *                                                                     ^ something comes meanwhile
 *
 * Both sleep in the plane's one epoll, and the kernel wakes who went to sleep last: the stand-in when it is there, the loop when it
 * is away with an io. If it were otherwise, it would be slower, not wrong.
 *
 * Threads: the loop's and the stand-in's. Who works with the plane has the turn. The loop gives it up only to sleep; the stand-in
 * also for the time of an io, and never waits for it: what it has when the loop has the turn, it leaves for the loop
 * (`returned`, `events`) and rings. Queues, rings and commands are the loop's: whatever but a lone io for a thread comes, the
 * stand-in gives up the turn and rings as well.
 * States of the stand-in: absent -> free -> (the loop sends it an io) -> works <-> waits, until it rings -> free.
 * Invariant: it rings after everything that it leaves, and after it is free.
 */
#ifndef AIOFS_STAND_IN_H
#define AIOFS_STAND_IN_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

struct aiofs_plane;
struct io;

struct stand_in {
    pthread_t thread;
    pthread_mutex_t turn;
    sem_t errands;  /* posted when `io` has been set, or `ends` */
    struct io *io;  /* that it is sent with */
    atomic_int state;
    atomic_int ends;
    struct io *_Atomic returned; /* done, and not answered: the loop had the turn */
    atomic_uint events;          /* of the epoll, that it took when the loop had the turn: bit n for the watch n */
};

/* In the loop's thread, which has the turn from here on. Without memory for a thread it stays absent. */
void stand_in_start(struct aiofs_plane *plane);
/* Nothing is in work any more. */
void stand_in_stop(struct aiofs_plane *plane);

/* May it be sent? If it waits for messages while the loop is at work, it is called back, to be free soon. */
int stand_in_is_free(struct aiofs_plane *plane);
/* Send it, when it is free, with a prepared io, which is all that is in work. */
void stand_in_send(struct aiofs_plane *plane, struct io *io);

/* The loop is about to sleep, and has slept. */
void stand_in_give_turn(struct aiofs_plane *plane);
void stand_in_take_turn(struct aiofs_plane *plane);
/* What it has left for the loop: an io, or NULL; a set of watches. */
struct io *stand_in_returned(struct aiofs_plane *plane);
unsigned stand_in_events(struct aiofs_plane *plane);

#endif
