/* control.c -- the commands of the control plane: register, unregister, truncate, open a driver, serve.
 *
 * A command is one packet, its answer another one (api.h). They come over a socket of their own, so
 * that they pass while the forward socket is full. An answer to UNREGISTER may come long after others.
 */
#include <assert.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plane.h"

/* Answers of commands that are done at once, while the control plane does not read them. */
#define ANSWERS_AHEAD 256

/* Answers that may still come from commands that have been taken: one of each image, to unregister it, and of
 * each resize. There is always room for them; the next command is taken only when there is for its answer, too. */
static size_t answers_to_come(const struct aiofs_plane *plane)
{
    return plane->config.max_images + RESIZES_MAX;
}

size_t control_outbox_size(const struct aiofs_plane *plane)
{
    return (answers_to_come(plane) + ANSWERS_AHEAD) * outbox_space(sizeof(aiofs_answer));
}

static int has_room(struct aiofs_plane *plane)
{
    return outbox_has_room(&plane->answers, (answers_to_come(plane) + 1) * outbox_space(sizeof(aiofs_answer)));
}

void control_answer(struct aiofs_plane *plane, uint64_t id, int64_t result)
{
    aiofs_answer answer = {.id = id, .result = result};
    struct iovec iov = {&answer, sizeof answer};
    int error = outbox_put(&plane->answers, &iov, 1);

    assert(error == 0 || error == -EPIPE); /* EPIPE: it has gone, and nobody waits for the answer */
}

static int watch_queue(struct aiofs_plane *plane, struct queue *queue)
{
    int fds[2];
    int n = queue_event_fds(queue, fds);

    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = WATCH_QUEUE};

        if (epoll_ctl(plane->epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0)
            return -errno;
    }
    return 0;
}

/* The queue of a driver, opened at its first use; opened here because an io_uring belongs to the thread
 * that uses it. */
static int queue_of(struct aiofs_plane *plane, int32_t driver, struct queue **out)
{
    struct queue *queue;
    int error;

    if (driver < 0 || driver >= aiofs_driver_table_count || driver >= QUEUES_MAX)
        return -EINVAL;
    if (!plane->queues[driver]) {
        error = queue_open(&queue, aiofs_driver_table[driver], plane->pool.count + plane->pool.resizes);
        if (error)
            return error;
        error = watch_queue(plane, queue);
        if (error) {
            queue_close(queue);
            return error;
        }
        plane->queues[driver] = queue;
    }
    *out = plane->queues[driver];
    return 0;
}

static int is_block_size(uint32_t size, uint32_t flags)
{
    if (!(flags & AIOFS_IMAGE_DIRECT))
        return size == 1;
    return size >= 1 && size <= BLOCK_MAX && (size & (size - 1)) == 0;
}

/* Announce the image to its queues. 0, or -errno and nothing done. */
static int attach(struct image *image)
{
    image->wide_file = image->file = queue_attach(image->queue, image->fd);
    if (image->file < 0)
        return image->file;
    if (image->wide_queue == image->queue)
        return 0;
    image->wide_file = queue_attach(image->wide_queue, image->fd);
    if (image->wide_file >= 0)
        return 0;
    queue_detach(image->queue, image->file);
    return image->wide_file;
}

static void detach(struct image *image)
{
    if (image->wide_queue != image->queue)
        queue_detach(image->wide_queue, image->wide_file);
    queue_detach(image->queue, image->file);
}

void control_end(struct aiofs_plane *plane)
{
    struct image_table *table = &plane->images;

    for (uint32_t slot = 0; slot < table->used; slot++)
        if (table->images[slot].node)
            detach(&table->images[slot]);
}

static int64_t do_register(struct aiofs_plane *plane, const aiofs_command *command)
{
    struct queue *queue, *wide_queue;
    struct image *image;
    int error;

    if (!is_block_size(command->block_size, command->flags) || command->fd < 0 || command->error > 0)
        return -EINVAL;
    if ((command->flags & AIOFS_IMAGE_DIRECT && command->tail_fd < 0) || !command->counters)
        return -EINVAL;
    error = queue_of(plane, command->driver, &queue);
    if (!error)
        error = queue_of(plane, command->wide_driver, &wide_queue);
    if (error)
        return error;
    image = image_add(&plane->images, command->node, &error);
    if (!image)
        return error;
    image->fd = command->fd;
    image->tail_fd = command->tail_fd;
    image->queue = queue;
    image->wide_queue = wide_queue;
    error = attach(image);
    if (error) {
        image_remove(&plane->images, image);
        return error;
    }
    image->flags = command->flags;
    image->block_size = command->block_size;
    image->sticky_error = command->error;
    image->counters = command->counters;
    image->counters->sticky_error = command->error;
    image->counters->in_flight = 0;
    image->handle = command->handle;
    return image_slot(&plane->images, image);
}

void control_unregistered(struct aiofs_plane *plane, struct image *image)
{
    uint64_t id = image->unregister_id;
    int64_t sticky = -image->sticky_error;

    detach(image);
    image_remove(&plane->images, image);
    control_answer(plane, id, sticky);
}

static void unregister(struct aiofs_plane *plane, const aiofs_command *command)
{
    struct image *image = image_find(&plane->images, command->node);

    if (!image || image->unregister_id) {
        control_answer(plane, command->id, -ENOENT);
        return;
    }
    image->unregister_id = command->id;
    if (image->active == 0)
        control_unregistered(plane, image);
}

static void truncate_image(struct aiofs_plane *plane, const aiofs_command *command)
{
    struct image *image = image_find(&plane->images, command->node);
    int64_t error = !image || image->unregister_id ? -ENOENT : command->size < 0 ? -EINVAL : 0;

    if (!error && image->flags & AIOFS_IMAGE_BLOCKDEV)
        error = -EPERM;
    if (error)
        control_answer(plane, command->id, error);
    else
        serve_truncate(plane, request_get_resize(&plane->pool), image, command->size, command->id);
}

/* What the kernel takes for "send again all that you sent and got no answer to" (FUSE_NOTIFY_RESEND, Linux 6.9). */
#define NOTIFY_RESEND 7

static int64_t serve(struct aiofs_plane *plane, const aiofs_command *command)
{
    const struct fuse_out_header resend = {.len = sizeof resend, .error = NOTIFY_RESEND};

    if (command->flags & AIOFS_RESEND && write(plane->config.fuse_fd, &resend, sizeof resend) < 0)
        return -errno;
    plane->held = 0;
    plane->fuse_ready = 1;
    return 0;
}

static void carry_out(struct aiofs_plane *plane, const aiofs_command *command)
{
    struct queue *queue;

    switch (command->verb) {
    case AIOFS_REGISTER:
        control_answer(plane, command->id, do_register(plane, command));
        break;
    case AIOFS_UNREGISTER:
        unregister(plane, command);
        break;
    case AIOFS_TRUNCATE:
        truncate_image(plane, command);
        break;
    case AIOFS_OPEN_DRIVER:
        control_answer(plane, command->id, queue_of(plane, command->driver, &queue));
        break;
    case AIOFS_SERVE:
        control_answer(plane, command->id, serve(plane, command));
        break;
    default:
        control_answer(plane, command->id, -EINVAL);
    }
}

int control_commands(struct aiofs_plane *plane)
{
    int n = 0;

    /* A TRUNCATE needs a request, and each needs room for its answer; while there is none, commands wait in
     * the socket. */
    while (plane->pool.free_resizes && has_room(plane)) {
        aiofs_command command;
        ssize_t size = recv(plane->config.control_fd, &command, sizeof command, MSG_DONTWAIT);

        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0) {
            plane->control_ready = 0;
            break;
        }
        if ((size_t)size == sizeof command && command.id)
            carry_out(plane, &command);
        n++;
    }
    return n;
}
