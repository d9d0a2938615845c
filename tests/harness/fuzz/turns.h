/* turns.h -- for fuzz targets of a whole plane: one between three socket pairs, whose loop takes its turns
 * when the target says so. Included behind dataplane.c, whose static functions it calls.
 */
#ifndef HARNESS_TURNS_H
#define HARNESS_TURNS_H

#include <assert.h>
#include <sys/socket.h>

#define MESSAGE_MAX ((1u << 20) + 8192)
#define TURNS_MAX 2000000 /* of the loop, before a request counts as lost */

static int pairs[3][2]; /* fuse, forward, control: ours, the plane's */
static unsigned char bytes[MESSAGE_MAX];

/* With the pairs' ends in its config. NULL: it is refused, and nothing is left open. */
static struct aiofs_plane *open_plane(aiofs_config *config)
{
    struct aiofs_plane *plane = NULL;
    int size = 4 << 20;

    for (int i = 0; i < 3; i++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pairs[i]) < 0)
            abort();
        for (int end = 0; end < 2; end++)
            (void)setsockopt(pairs[i][end], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    }
    config->fuse_fd = pairs[0][1];
    config->forward_fd = pairs[1][1];
    config->control_fd = pairs[2][1];
    if (aiofs_open(&plane, config) == 0)
        return plane;
    for (int i = 0; i < 3; i++)
        for (int end = 0; end < 2; end++)
            close(pairs[i][end]);
    return NULL;
}

static void close_plane(struct aiofs_plane *plane)
{
    aiofs_close(plane);
    for (int i = 0; i < 3; i++)
        for (int end = 0; end < 2; end++)
            close(pairs[i][end]);
}

/* What the plane has sent: each packet must be whole. */
static void take_all(int leave_forward)
{
    ssize_t size;

    while ((size = recv(pairs[0][0], bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
        struct fuse_out_header header;

        assert((size_t)size >= sizeof header);
        memcpy(&header, bytes, sizeof header);
        assert(header.len == (size_t)size);
        /* An answer; or a notification: an invalidation, or AIOFS_SERVE's wish for a resend. */
        assert(header.error <= 0 || (!header.unique && (header.error == 2 || header.error == 7)));
    }
    while ((size = recv(pairs[2][0], bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        assert(size == sizeof(aiofs_answer));
    while (!leave_forward && recv(pairs[1][0], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

/* Turns of the loop, until it would sleep and no request is in work. */
static void take_turns(struct aiofs_plane *plane, int leave_forward)
{
    for (int i = 0;; i++) {
        plane->fuse_ready = plane->forward_ready = plane->control_ready = 1;
        if (!work(plane) && !plane->in_work)
            break;
        take_all(leave_forward);
        assert(i < TURNS_MAX);
    }
    take_all(leave_forward);
}

static void send_to(int pair, const void *data, size_t size)
{
    if (size) /* an empty packet would be the end of the file */
        (void)send(pairs[pair][0], data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

#endif
