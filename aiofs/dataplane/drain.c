/* drain.c -- from /dev/fuse to the rooms that serve: read what the kernel has sent, a batch at a time.
 *
 * Knows how messages arrive, of what length, and when a batch has had enough of them; not what becomes of them.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "clock.h"
#include "plane.h"

/* Where a drain ends: after so many messages that do not go on where the one before them ended, or so
 * many in all. Reading all 32 random requests that wait makes one lump of them: the device idles while
 * they are read and the kernel while they are answered. Eight keep both busy, for one notification of the device; a
 * stream gains more from the block layer's merging, which wants a longer batch. README.md has the figures. */
#define DRAIN_STARTS 8
#define DRAIN_MAX 16

/* Does the message go on where the last data request of the kernel ended? */
static int continues_stream(struct aiofs_plane *plane, const struct message *message)
{
    int same = message->opcode == plane->last_opcode && message->node == plane->last_node &&
               message->offset == plane->last_end;

    plane->last_opcode = message->opcode;
    plane->last_node = message->node;
    plane->last_end = message->offset + message->length;
    plane->last_pid = message->pid;
    return same;
}

/* Returns whether the message continues a stream. */
static int route(struct aiofs_plane *plane, struct request *r, const struct message *message, size_t size)
{
    if (plane->config.progress && protocol_wants_answer(message))
        plane->config.progress->asked++;
    plane->counters.requests++;
    if (message->kind == MESSAGE_REFUSED) {
        plane->counters.refused++;
        if (message->unique)
            serve_refuse(plane, message->unique, -EINVAL);
        request_put(&plane->pool, r);
    } else if (message->kind == MESSAGE_IGNORED) {
        request_put(&plane->pool, r);
    } else if (message->kind != MESSAGE_OTHER && image_find(&plane->images, message->node)) {
        serve_message(plane, r, message);
    } else if (message->kind == MESSAGE_WRITE || message->kind == MESSAGE_FALLOCATE) {
        /* The control plane serves no writes: it opens nothing but images for writing. */
        serve_refuse(plane, message->unique, -EBADF);
        request_put(&plane->pool, r);
    } else if (message->kind == MESSAGE_LSEEK) {
        /* Of a file in .aiofs. libfuse would say ENOSYS, and the kernel ask no more about any file. EINVAL says
         * that this file knows no holes: cp and tar then read it. */
        serve_refuse(plane, message->unique, -EINVAL);
        request_put(&plane->pool, r);
    } else {
        forward_message(plane, r, message, size);
    }
    return continues_stream(plane, message);
}

/* Read one message into the buffers. Returns its size, or 0 when there is none to be had now. */
static size_t receive(struct aiofs_plane *plane, const struct iovec *iov, int iovcnt)
{
    for (;;) {
        ssize_t size = readv(plane->config.fuse_fd, iov, iovcnt);

        if (size > 0)
            return (size_t)size;
        if (size < 0 && (errno == EINTR || errno == ENOENT)) /* ENOENT: interrupted before we had it */
            continue;
        plane->fuse_ready = 0;
        if (size == 0 || errno == ENODEV || errno == ECONNABORTED || errno == ECONNRESET)
            plane->unmounted = 1;
        else if (errno != EAGAIN)
            plane->failed = -errno;
        return 0;
    }
}

/* Room that the message in r->head needs for its data, `landed` bytes of which are there. */
static size_t room_for(const struct message *message, size_t landed)
{
    size_t widened = message->kind <= MESSAGE_WRITE ? (size_t)message->length + 2 * BLOCK_MAX : 0;

    return widened > landed ? widened : landed;
}

/* Read one message into r. How long it is shows only then, so it is given a short and a long buffer, of which
 * it keeps one; the data of its kin go straight to the right one when the last was of that length.
 * Returns the message's size, or 0 when there is none, or no long buffer. */
static size_t take_message(struct aiofs_plane *plane, struct request *r, struct message *message)
{
    unsigned char *buffer = request_get_long(&plane->pool);
    struct iovec head = {r->head, WIRE_HEAD};
    size_t size, landed;
    int is_long;

    if (!buffer)
        return 0;
    if (plane->long_data)
        size = receive(plane, (struct iovec[]){head, {buffer, LONG_SIZE}}, 2);
    else
        size = receive(plane,
                       (struct iovec[]){head, {r->own, SHORT_SIZE}, {buffer + SHORT_SIZE, LONG_SIZE - SHORT_SIZE}},
                       3);
    protocol_parse(message, r->head, size);
    landed = size > WIRE_HEAD ? size - WIRE_HEAD : 0;
    is_long = room_for(message, landed) > SHORT_SIZE;
    if (is_long && !plane->long_data)
        memcpy(buffer, r->own, landed < SHORT_SIZE ? landed : SHORT_SIZE);
    else if (!is_long && plane->long_data)
        memcpy(r->own, buffer, landed);
    if (is_long)
        r->payload = r->longer = buffer;
    else
        request_put_long(&plane->pool, buffer);
    if (landed)
        plane->long_data = is_long;
    return size;
}

/* Where messages come one by one, and nothing is in work, the next one is a batch by itself, and whether there are more is
 * asked when the device is at work: at depth 1 that question (1 us) would be part of each round trip. */
static int drain_max(const struct aiofs_plane *plane)
{
    return plane->come_alone && !plane->in_work ? 1 : DRAIN_MAX;
}

/* `n` messages have been read, of at most `max`. */
static void note_drain(struct aiofs_plane *plane, int n, int max)
{
    if (plane->cut_short) {
        plane->come_alone = n == 0 && !plane->fuse_ready; /* there were no more indeed */
        plane->cut_short = 0;
    } else if (n > 0 && max == 1) {
        plane->cut_short = 1;
    } else if (n > 0) {
        plane->come_alone = n == 1 && !plane->fuse_ready;
    }
}

int drain_messages(struct aiofs_plane *plane)
{
    int max = drain_max(plane);
    int n = 0, starts = 0;

    if (plane->held)
        return 0;
    while (n < max && starts < DRAIN_STARTS && plane->fuse_ready && !plane->stuck && !plane_is_stopping(plane)) {
        struct request *r = request_get(&plane->pool);
        struct message message;
        size_t size;

        if (!r)
            break;
        size = take_message(plane, r, &message);
        if (!size) {
            request_put(&plane->pool, r);
            break;
        }
        if (n == 0) /* one look at the clock for the whole drain: README.md has what it costs and loses */
            plane->now_ns = clock_ns();
        starts += !route(plane, r, &message, size);
        n++;
    }
    note_drain(plane, n, max);
    return n;
}
