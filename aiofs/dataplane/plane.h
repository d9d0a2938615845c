/* plane.h -- the data plane's state, shared by its rooms; nobody outside them includes this.
 *
 *   dataplane.c  open, run, stop, close: the loop and its one wait
 *   drain.c      the kernel's messages, read in batches
 *   serve.c      the life of a data request or resize of a registered image
 *   space.c      what is special about FALLOCATE and LSEEK
 *   batch.c      of them, what is ready: merged and submitted
 *   replies.c    how answers are written
 *   waiting.c    whether the loop looks for work or sleeps
 *   naps.c       how short sleeps are made cheap
 *   stand_in.c   a second thread, in the place of the loop while that sleeps
 *   lumps.c      how much of the work the device is given at a time
 *   forward.c    everything else, to the control plane and back
 *   control.c    the commands of the control plane
 *
 * Threads: one, from aiofs_run on, the loop's, or its stand-in in its place (stand_in.h); only `stop`, `wake_fd` and the stocks
 * and outboxes are touched by others. Nothing here is
 * allocated or freed while the loop runs, but a queue when a driver is used for the first time.
 */
#ifndef AIOFS_PLANE_H
#define AIOFS_PLANE_H

#include <stdatomic.h>
#include <stdint.h>

#include "contract.h"
#include "image.h"
#include "merge.h"
#include "naps.h"
#include "outbox.h"
#include "protocol.h"
#include "queue.h"
#include "replies.h"
#include "request.h"
#include "stand_in.h"
#include "vigil.h"
#include "waiting.h"

#define QUEUES_MAX 16       /* drivers, those with faults included */
#define PENDING_OPENS_MAX 1024
#define RESIZES_MAX 64      /* resizes in work at once; more wait in the control socket */
#define INIT_MESSAGE_MAX 256

/* What an event of the loop's epoll is about. */
enum watch { WATCH_FUSE, WATCH_FORWARD, WATCH_CONTROL, WATCH_WAKE, WATCH_QUEUE };

/* A forwarded message whose reply is amended or counted: OPEN, CREATE, RELEASE, INIT. */
struct pending_open {
    uint64_t unique;
    uint64_t node;
    uint64_t handle; /* of a RELEASE */
    uint32_t opcode;
};

struct aiofs_plane {
    aiofs_config config;
    int epoll_fd, wake_fd;
    struct request_pool pool;
    struct image_table images;
    struct queue *queues[QUEUES_MAX]; /* by index in the table of drivers; NULL: not opened yet */
    aiofs_plane_counters counters;
    int64_t now_ns; /* when the drain, or the taking up of an io's result, began that is at work now */

    /* serve.c, batch.c */
    struct request *ready, **ready_end; /* to go out with the next batch, in order of arrival */
    struct merge *merge;
    struct span *spans;
    int32_t *heads;
    struct request **batch;
    struct io **ios;
    unsigned in_work; /* requests WAITING, READY or RUNNING */
    struct io *finished, **finished_end; /* reaped, to be answered, in the order in which they finished */
    struct replies replies;

    /* forward.c, control.c */
    struct outbox up, answers; /* to the control plane: messages, and what its commands came to */
    struct request *stuck; /* READING: a message that `up` had no room for */
    unsigned char *reply;  /* buffer for its replies, REPLY_MAX bytes */
    struct pending_open pending[PENDING_OPENS_MAX];
    unsigned pending_count;
    unsigned char init_request[INIT_MESSAGE_MAX], init_reply[INIT_MESSAGE_MAX];
    size_t init_request_size;
    _Atomic size_t init_reply_size; /* set last: the exchange is complete */
    int replaying;                  /* init_request is on its way to the control plane, not from the kernel */

    /* dataplane.c, drain.c */
    int fuse_ready, forward_ready, control_ready; /* may have more to read: epoll is edge-triggered */
    uint32_t last_opcode; /* the last message: where a stream would go on */
    uint64_t last_node;
    int64_t last_end;
    uint32_t last_pid;
    int come_alone, cut_short; /* messages come one by one; the last drain ended after one without asking for more */
    int held; /* AIOFS_SERVE has not come: the kernel's requests wait */
    int long_data; /* the last message with data had more of it than is short */
    int unmounted;
    int failed; /* -errno: the loop cannot go on */
    struct waiting waiting;
    struct naps naps;
    struct vigil vigil;
    int by_kernel; /* what was submitted last is done by no thread of ours */
    struct stand_in stand_in;
    atomic_int stop;
};

#define REPLY_MAX (WIRE_DATA_MAX + 4096)
#define UP_SIZE (WIRE_DATA_MAX + 65536) /* of the outbox: a message of any length, or some hundred usual ones */

/* No new requests are taken, and those in work are the last. */
static inline int plane_is_stopping(struct aiofs_plane *plane)
{
    return plane->unmounted || plane->failed || atomic_load_explicit(&plane->stop, memory_order_relaxed);
}

/* dataplane.c */
/* Events taken from the epoll at once. */
#define PLANE_EVENTS 16
/* A set of watches: bit n for the watch n. */
void plane_note_events(struct aiofs_plane *plane, unsigned set);
/* Is the next sleep to begin with a look for work (waiting.h)? */
int plane_looks(struct aiofs_plane *plane);

/* drain.c */
/* Read a batch, or less when the kernel has no more, every request is in use, or the control plane is full. Returns the
 * number of messages. */
int drain_messages(struct aiofs_plane *plane);

/* serve.c */
/* A parsed data request of a registered image, in r. Takes r over. */
void serve_message(struct aiofs_plane *plane, struct request *r, const struct message *message);
/* A resize command; r from request_get_resize. Takes r over. */
void serve_truncate(struct aiofs_plane *plane, struct request *r, struct image *image, int64_t size,
                    uint64_t command);
/* Take from the drivers what has finished. Returns the number of ios. */
int serve_reap(struct aiofs_plane *plane);
/* An io that was not submitted to a driver has finished, with its result set. */
void serve_finished(struct aiofs_plane *plane, struct io *io);
/* Answer some of it. Returns the number of ios; 0: nothing has finished. */
int serve_answer(struct aiofs_plane *plane);
/* Answer a message that stays no request: error <= 0. */
void serve_refuse(struct aiofs_plane *plane, uint64_t unique, int error);
/* Write a whole reply of the control plane to the kernel. */
void serve_pass(struct aiofs_plane *plane, void *reply, size_t size);

/* r may go on: it goes out with the next batch. */
void serve_ready(struct aiofs_plane *plane, struct request *r);
/* Answer r with an error (< 0) and let go of it. */
void serve_fail(struct aiofs_plane *plane, struct request *r, int64_t error);
/* May r go to its image as it is, without padding? */
int serve_is_aligned(const struct request *r);

/* batch.c */
/* Merge and submit what is ready, as far as the device is to have it now. Returns the number of ios. */
int batch_submit(struct aiofs_plane *plane);
/* Submit what is ready, which is one request, and all that is in work; then sleep until it has finished or one of fds can be
 * read. Returns a mask of those fds (bit n: fds[n]), or -1 where the driver cannot do both in one call: it has not slept. */
int batch_submit_and_wait(struct aiofs_plane *plane, const int *fds);
/* The io of what is ready, which is one request, and all that is in work, if a thread is to do it and it is a plain read or write:
 * prepared, and submitted nowhere. NULL: it is as it was, or has been answered. */
struct io *batch_take_for_thread(struct aiofs_plane *plane);

/* forward.c */
/* Pass the message of `size` bytes in r to the control plane. Takes r over. */
void forward_message(struct aiofs_plane *plane, struct request *r, const struct message *message, size_t size);
/* Give the control plane plane->init_request, and keep its answer. 0, or -errno. */
int forward_replay_init(struct aiofs_plane *plane);
/* Try plane->stuck again. Returns 1 when it went. */
int forward_stuck(struct aiofs_plane *plane);
/* Pass up what the control plane has answered. Returns the number of messages. */
int forward_replies(struct aiofs_plane *plane);

/* control.c */
/* Carry out the commands that have come. Returns their number. */
int control_commands(struct aiofs_plane *plane);
size_t control_outbox_size(const struct aiofs_plane *plane);
void control_answer(struct aiofs_plane *plane, uint64_t id, int64_t result);
/* The last request of an image that is being unregistered is done. */
void control_unregistered(struct aiofs_plane *plane, struct image *image);
/* The loop has ended: let go of images that are still registered. Only its thread can take a file out of an io_uring. One that
 * is closed with files in it lets go of them some time later, and the file system that they are on is busy until then. */
void control_end(struct aiofs_plane *plane);

#endif
