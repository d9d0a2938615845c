/* outbox.h -- messages on their way into a socket, sent by a thread of their own.
 *
 * The kernel allocates what a socket holds, in the thread that sends, and that may have to wait (populate.h).
 * So the loop puts its messages into a ring in memory, which never waits, and the outbox's thread sends them, in order.
 */
#ifndef AIOFS_OUTBOX_H
#define AIOFS_OUTBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct outbox {
    int fd;      /* a SOCK_SEQPACKET socket, borrowed */
    int wake_fd; /* an eventfd, borrowed: rung when there is room again for whoever found none */
    int stop_fd;
    size_t size;
    unsigned char *ring; /* of a length (uint32_t), then so many bytes, and so on */

    pthread_mutex_t lock; /* guards these: */
    pthread_cond_t changed;
    size_t head, used;
    bool starved; /* wake_fd is waited for */
    bool broken;  /* nobody reads the socket any more */
    bool stop;

    bool running;
    pthread_t thread;
};

/* What a message of `size` bytes takes of an outbox. */
static inline size_t outbox_space(size_t size)
{
    return sizeof(uint32_t) + size;
}

/* Room for `size` bytes. 0, or -errno. */
int outbox_open(struct outbox *box, int fd, int wake_fd, size_t size);
void outbox_close(struct outbox *box); /* what has not been sent is dropped */

/* One message, copied. 0, or -EAGAIN: no room now, wake_fd will ring; -EMSGSIZE: the socket cannot carry it;
 * -EPIPE: nobody reads it any more. Never waits. One thread. */
int outbox_put(struct outbox *box, const struct iovec *iov, size_t iovcnt);

/* Is there room for `space` bytes? If not, wake_fd will ring. */
bool outbox_has_room(struct outbox *box, size_t space);

/* Return when all has been sent, or cannot be. */
void outbox_flush(struct outbox *box);

#endif
