/* forward.c -- messages that are no data requests: up to the control plane, and its answers back.
 *
 * The control plane sits behind a SOCK_SEQPACKET socket and believes that it is /dev/fuse; a message is
 * a packet, in both directions. When the outbox is full the message stays in its request (plane->stuck)
 * and nothing more is drained, so order holds and memory is bounded. What passes up is checked, because
 * some notifications would block this thread for ever (protocol.h).
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plane.h"

/* Ordinary users cannot raise a socket's buffer above 208 KiB (net.core.wmem_max), and under memory
 * pressure the kernel sends as many forgets as fit into our megabyte of read buffer: they are passed on
 * in parts of this many, 32 KiB. */
#define FORGETS_MAX 2048

#define REPLIES_PER_CALL 64

/* ---- up ---- */

/* Of the file that is released; 0 of another message, or one that is too short. */
static uint64_t released_handle(const struct request *r, uint32_t opcode)
{
    struct fuse_release_in release;

    _Static_assert(sizeof(struct fuse_in_header) + sizeof release <= WIRE_HEAD, "it lies in the head");
    if (opcode != FUSE_RELEASE || r->length < sizeof(struct fuse_in_header) + sizeof release)
        return 0;
    memcpy(&release, r->head + sizeof(struct fuse_in_header), sizeof release);
    return release.fh;
}

static void remember(struct aiofs_plane *plane, const struct request *r, const struct fuse_in_header *header)
{
    uint32_t opcode = header->opcode;

    if (opcode == FUSE_INIT && r->length <= INIT_MESSAGE_MAX) {
        size_t fixed = r->length < WIRE_HEAD ? r->length : WIRE_HEAD;

        memcpy(plane->init_request, r->head, fixed);
        memcpy(plane->init_request + fixed, r->payload, r->length - fixed);
        plane->init_request_size = r->length;
    }
    if (opcode == FUSE_OPEN || opcode == FUSE_CREATE || opcode == FUSE_RELEASE || opcode == FUSE_INIT)
        plane->pending[plane->pending_count++] =
            (struct pending_open){r->unique, header->nodeid, released_handle(r, opcode), opcode};
}

/* What recall forgets and returns: the forwarded message with this unique; its opcode is 0 when there is none. */
static struct pending_open recall(struct aiofs_plane *plane, uint64_t unique)
{
    for (unsigned i = 0; i < plane->pending_count; i++) {
        struct pending_open found = plane->pending[i];

        if (found.unique == unique) {
            plane->pending[i] = plane->pending[--plane->pending_count];
            return found;
        }
    }
    return (struct pending_open){0, 0, 0, 0};
}

static int send_message(struct aiofs_plane *plane, struct request *r)
{
    size_t fixed = r->length < WIRE_HEAD ? r->length : WIRE_HEAD;
    struct iovec iov[2] = {{r->head, fixed}, {r->payload, r->length - fixed}};

    return outbox_put(&plane->up, iov, 2);
}

/* Send a BATCH_FORGET in parts; r->done counts the forgets that have gone. */
static int send_forgets(struct aiofs_plane *plane, struct request *r)
{
    struct fuse_in_header header;
    struct fuse_batch_forget_in batch;
    size_t at_list = sizeof header + sizeof batch; /* 48: the list begins within the head */
    size_t in_head = WIRE_HEAD - at_list;

    memcpy(&header, r->head, sizeof header);
    memcpy(&batch, r->head + sizeof header, sizeof batch);
    /* One forget is 16 bytes, so the head holds two whole ones and the payload the others. */
    _Static_assert((WIRE_HEAD - sizeof header - sizeof batch) % sizeof(struct fuse_forget_one) == 0, "split");
    while (r->done < batch.count) {
        uint32_t first = (uint32_t)(in_head / sizeof(struct fuse_forget_one));
        uint32_t count = batch.count - r->done;
        struct fuse_batch_forget_in part;
        struct iovec iov[3] = {{&header, sizeof header}, {&part, sizeof part}, {NULL, 0}};
        int error;

        if (r->done < first) {
            count = count < first - r->done ? count : first - r->done;
            iov[2].iov_base = r->head + at_list + r->done * sizeof(struct fuse_forget_one);
        } else {
            count = count < FORGETS_MAX ? count : FORGETS_MAX;
            iov[2].iov_base = r->payload + (r->done - first) * sizeof(struct fuse_forget_one);
        }
        part = (struct fuse_batch_forget_in){.count = count};
        iov[2].iov_len = count * sizeof(struct fuse_forget_one);
        header.len = (uint32_t)(sizeof header + sizeof part + iov[2].iov_len);
        error = outbox_put(&plane->up, iov, 3);
        if (error)
            return error;
        r->done += count;
    }
    return 0;
}

static int is_sound_batch_forget(const struct request *r)
{
    struct fuse_batch_forget_in batch;
    size_t fixed = sizeof(struct fuse_in_header) + sizeof batch;

    if (r->length < fixed)
        return 0;
    memcpy(&batch, r->head + sizeof(struct fuse_in_header), sizeof batch);
    return (r->length - fixed) / sizeof(struct fuse_forget_one) >= batch.count;
}

static int wants_answer(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET;
}

/* 1: r is done with. 0: it stays plane->stuck. */
static int try_send(struct aiofs_plane *plane, struct request *r)
{
    struct fuse_in_header header;
    int error = plane->pending_count == PENDING_OPENS_MAX ? -EAGAIN : 0;

    memcpy(&header, r->head, sizeof header);
    if (!error)
        error = header.opcode == FUSE_BATCH_FORGET ? send_forgets(plane, r) : send_message(plane, r);
    if (error == -EAGAIN) {
        plane->stuck = r;
        return 0;
    }
    if (error == -EMSGSIZE) { /* an xattr, say, that an ordinary user's socket cannot carry */
        plane->counters.refused++;
        if (wants_answer(header.opcode))
            serve_refuse(plane, r->unique, -E2BIG);
    } else if (error) {
        plane->failed = -EPIPE; /* the control plane has gone */
    } else {
        plane->counters.forwarded++;
        remember(plane, r, &header);
    }
    plane->stuck = NULL;
    request_put(&plane->pool, r);
    return 1;
}

void forward_message(struct aiofs_plane *plane, struct request *r, const struct message *message, size_t size)
{
    r->unique = message->unique;
    r->length = (uint32_t)size;
    if (message->unique & WIRE_RESENT)
        protocol_mark_resent(r->head);
    if (message->opcode == FUSE_BATCH_FORGET && !is_sound_batch_forget(r)) {
        plane->counters.refused++;
        request_put(&plane->pool, r);
        return;
    }
    (void)try_send(plane, r);
}

int forward_replay_init(struct aiofs_plane *plane)
{
    struct request *r = request_get(&plane->pool);
    size_t size = plane->init_request_size;
    size_t fixed = size < WIRE_HEAD ? size : WIRE_HEAD;
    struct message message;

    memcpy(r->head, plane->init_request, fixed);
    memcpy(r->payload, plane->init_request + fixed, size - fixed);
    protocol_parse(&message, r->head, size);
    if (message.opcode != FUSE_INIT || message.kind != MESSAGE_OTHER) {
        request_put(&plane->pool, r);
        return -EPROTO;
    }
    plane->replaying = 1;
    forward_message(plane, r, &message, size);
    return 0;
}

int forward_stuck(struct aiofs_plane *plane)
{
    return plane->stuck ? try_send(plane, plane->stuck) : 0;
}

/* ---- down ---- */

/* The answer to INIT: the data plane has a word in it. Returns whether the kernel is to have it. */
static int take_init(struct aiofs_plane *plane, const struct fuse_out_header *header, size_t size)
{
    int replayed = plane->replaying;
    int error = header->error;

    plane->replaying = 0;
    if (!error)
        error = protocol_amend_init(plane->init_request, plane->init_request_size, plane->reply, size,
                                    plane->config.queue_depth);
    else if (!replayed)
        return 1;
    if (error) {
        plane->failed = error;
    } else if (size <= INIT_MESSAGE_MAX) {
        memcpy(plane->init_reply, plane->reply, size);
        atomic_store(&plane->init_reply_size, size);
    }
    return !replayed;
}

/* Count an open that the kernel is about to learn of. Before it does: should this process die in between, the
 * image stays open rather than be closed under its user. */
static void count_open(struct aiofs_plane *plane, const struct pending_open *asked, size_t size)
{
    uint64_t node = asked->opcode == FUSE_CREATE ? protocol_created_node(plane->reply, size) : asked->node;
    struct image *image = image_find(&plane->images, node);

    if (image)
        image->counters->opens++;
}

/* The image may have been closed, and opened again, since that open of it. */
static void count_release(struct aiofs_plane *plane, const struct pending_open *asked)
{
    struct image *image = image_find(&plane->images, asked->node);

    if (image && image->handle == asked->handle && image->counters->opens)
        image->counters->opens--;
}

static void pass_down(struct aiofs_plane *plane, size_t size)
{
    struct fuse_out_header header;
    struct pending_open asked = {0, 0, 0, 0};

    if (protocol_check_reply(plane->reply, size) == REPLY_REFUSED) {
        plane->counters.refused++;
        return;
    }
    memcpy(&header, plane->reply, sizeof header);
    if (header.unique)
        asked = recall(plane, header.unique);
    if (asked.opcode == FUSE_INIT) {
        if (!take_init(plane, &header, size))
            return;
    } else if ((asked.opcode == FUSE_OPEN || asked.opcode == FUSE_CREATE) && header.error == 0) {
        protocol_amend_open(asked.opcode, plane->reply, size);
        count_open(plane, &asked, size);
    }
    serve_pass(plane, plane->reply, size);
    if (asked.opcode == FUSE_RELEASE)
        count_release(plane, &asked);
}

int forward_replies(struct aiofs_plane *plane)
{
    int n;

    for (n = 0; n < REPLIES_PER_CALL; n++) {
        /* MSG_TRUNC: the packet's real length, which check_reply compares with what it says */
        ssize_t size = recv(plane->config.forward_fd, plane->reply, REPLY_MAX, MSG_DONTWAIT | MSG_TRUNC);

        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0) {
            plane->forward_ready = 0;
            if (size == 0 || errno != EAGAIN)
                plane->failed = -EPIPE;
            return n;
        }
        if ((size_t)size > REPLY_MAX)
            plane->counters.refused++;
        else
            pass_down(plane, (size_t)size);
    }
    return n;
}
