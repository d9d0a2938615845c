/* outbox.c -- see outbox.h. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "outbox.h"
#include "populate.h"

/* Every socket carries this much (SOCK_MIN_SNDBUF). */
#define ALWAYS_FITS 2048u

/* How long to wait when the kernel has no memory for a message and will not say when. */
#define NO_MEMORY_MS 10

/* ---- the ring ---- */

/* The `size` bytes from `at` on, as one piece or two. Returns their number. */
static int pieces(const struct outbox *box, size_t at, size_t size, struct iovec out[2])
{
    size_t first = box->size - at < size ? box->size - at : size;

    out[0] = (struct iovec){box->ring + at, first};
    out[1] = (struct iovec){box->ring, size - first};
    return first < size ? 2 : 1;
}

static size_t copy_in(struct outbox *box, size_t at, const void *data, size_t size)
{
    struct iovec to[2];

    (void)pieces(box, at, size, to);
    memcpy(to[0].iov_base, data, to[0].iov_len);
    memcpy(to[1].iov_base, (const char *)data + to[0].iov_len, to[1].iov_len);
    return (at + size) % box->size;
}

static uint32_t length_at(const struct outbox *box, size_t at)
{
    struct iovec from[2];
    uint32_t length;

    (void)pieces(box, at, sizeof length, from);
    memcpy(&length, from[0].iov_base, from[0].iov_len);
    memcpy((char *)&length + from[0].iov_len, from[1].iov_base, from[1].iov_len);
    return length;
}

/* ---- the thread ---- */

/* Send one message. -errno: the socket takes no more, or we are to stop. */
static int send_one(const struct outbox *box, size_t at, size_t size)
{
    struct iovec iov[2];
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)pieces(box, at, size, iov)};

    while (sendmsg(box->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        struct pollfd fds[2] = {{.fd = box->stop_fd, .events = POLLIN}, {.fd = box->fd, .events = POLLOUT}};

        if (errno == EAGAIN)
            (void)poll(fds, 2, -1);
        else if (errno == ENOBUFS || errno == ENOMEM)
            (void)poll(fds, 1, NO_MEMORY_MS);
        else if (errno != EINTR)
            return -errno;
        if (fds[0].revents)
            return -ECANCELED;
    }
    return 0;
}

/* Wait for a message, and send it. False: no more will be sent. */
static bool send_next(struct outbox *box)
{
    size_t head;
    uint32_t length;
    bool starved;
    int error;

    while (box->used == 0 && !box->stop)
        pthread_cond_wait(&box->changed, &box->lock);
    if (box->stop)
        return false;
    head = box->head;
    length = length_at(box, head);
    pthread_mutex_unlock(&box->lock);
    error = send_one(box, (head + sizeof length) % box->size, length);
    pthread_mutex_lock(&box->lock);
    box->broken = error < 0;
    box->head = (head + outbox_space(length)) % box->size;
    box->used -= outbox_space(length);
    starved = box->starved;
    box->starved = false;
    pthread_cond_broadcast(&box->changed);
    if (starved)
        (void)eventfd_write(box->wake_fd, 1);
    return !box->broken;
}

static void *run(void *argument)
{
    struct outbox *box = argument;

    pthread_setname_np(pthread_self(), "aiofs-outbox");
    pthread_mutex_lock(&box->lock);
    while (send_next(box))
        ;
    pthread_mutex_unlock(&box->lock);
    return NULL;
}

/* ---- the loop's side ---- */

int outbox_open(struct outbox *box, int fd, int wake_fd, size_t size)
{
    sigset_t all, before;
    int error;

    *box = (struct outbox){.fd = fd, .wake_fd = wake_fd, .size = size, .stop_fd = eventfd(0, EFD_CLOEXEC)};
    if (box->stop_fd < 0)
        return -errno;
    box->ring = populated_calloc(1, size);
    pthread_mutex_init(&box->lock, NULL);
    pthread_cond_init(&box->changed, NULL);
    sigfillset(&all); /* signals are for the threads that know what to do with them */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    error = box->ring ? -pthread_create(&box->thread, NULL, run, box) : -ENOMEM;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    box->running = error == 0;
    if (error) {
        free(box->ring);
        close(box->stop_fd);
    }
    return error;
}

void outbox_close(struct outbox *box)
{
    if (!box->running)
        return;
    pthread_mutex_lock(&box->lock);
    box->stop = true;
    pthread_cond_broadcast(&box->changed);
    pthread_mutex_unlock(&box->lock);
    (void)eventfd_write(box->stop_fd, 1);
    pthread_join(box->thread, NULL);
    pthread_cond_destroy(&box->changed);
    pthread_mutex_destroy(&box->lock);
    free(box->ring);
    close(box->stop_fd);
    box->running = false;
}

/* Can the socket carry it? It may be of an ordinary user, who cannot make its buffer as large as messages get. */
static bool fits(const struct outbox *box, size_t size)
{
    int buffer = 0;
    socklen_t length = sizeof buffer;

    if (outbox_space(size) > box->size)
        return false;
    if (size <= ALWAYS_FITS)
        return true;
    /* unix_dgram_sendmsg() in the kernel's net/unix/af_unix.c */
    return getsockopt(box->fd, SOL_SOCKET, SO_SNDBUF, &buffer, &length) == 0 && size + 32 <= (size_t)buffer;
}

int outbox_put(struct outbox *box, const struct iovec *iov, size_t iovcnt)
{
    size_t size = 0, at;
    uint32_t length;
    int error = 0;

    for (size_t i = 0; i < iovcnt; i++)
        size += iov[i].iov_len;
    if (!fits(box, size))
        return -EMSGSIZE;
    length = (uint32_t)size;
    pthread_mutex_lock(&box->lock);
    if (box->broken) {
        error = -EPIPE;
    } else if (box->size - box->used < outbox_space(size)) {
        box->starved = true;
        error = -EAGAIN;
    } else {
        at = copy_in(box, (box->head + box->used) % box->size, &length, sizeof length);
        for (size_t i = 0; i < iovcnt; i++)
            at = copy_in(box, at, iov[i].iov_base, iov[i].iov_len);
        box->used += outbox_space(size);
        pthread_cond_broadcast(&box->changed);
    }
    pthread_mutex_unlock(&box->lock);
    return error;
}

bool outbox_has_room(struct outbox *box, size_t space)
{
    bool room;

    pthread_mutex_lock(&box->lock);
    room = box->broken || box->size - box->used >= space;
    box->starved |= !room;
    pthread_mutex_unlock(&box->lock);
    return room;
}

void outbox_flush(struct outbox *box)
{
    pthread_mutex_lock(&box->lock);
    while (box->used > 0 && !box->broken)
        pthread_cond_wait(&box->changed, &box->lock);
    pthread_mutex_unlock(&box->lock);
}
