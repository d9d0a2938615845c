/* replies.c -- see replies.h. */
#include "replies.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ring.h"

/* A sample, and the switches in it from which on answers are written together. Loop devices on a mount show 0.6-0.8 an
 * answer, fio on its files 0.01-0.2. */
#define SAMPLE 64
#define SWITCHES_MANY (SAMPLE / 2)
/* Answers until the next sample: its 64 slower ones are to be few among them. */
#define TOGETHER 1024

void replies_init(struct replies *replies, const aiofs_config *config, uint64_t *together_count)
{
    replies->fd = config->fuse_fd;
    replies->manner = config->replies;
    replies->progress = config->progress;
    replies->together_count = together_count;
}

void replies_start(struct replies *replies)
{
    if (replies->manner == AIOFS_REPLIES_SINGLY || ring_open(&replies->ring, REPLIES_GATHERED_MAX) < 0)
        return;
    replies->has_ring = ring_warm(&replies->ring, REPLIES_GATHERED_MAX, false) == 0;
    if (!replies->has_ring)
        io_uring_queue_exit(&replies->ring);
}

void replies_close(struct replies *replies)
{
    if (replies->has_ring)
        io_uring_queue_exit(&replies->ring);
}

static ssize_t write_pieces(int fd, const struct iovec *iov, int iovcnt)
{
    return iovcnt == 1 ? write(fd, iov->iov_base, iov->iov_len) : writev(fd, iov, iovcnt);
}

void replies_write(struct replies *replies, const struct iovec *iov, int iovcnt)
{
    if (replies->progress)
        replies->progress->answered++;
    while (write_pieces(replies->fd, iov, iovcnt) < 0) {
        struct pollfd writable = {.fd = replies->fd, .events = POLLOUT};

        if (errno == EAGAIN) /* a socket in tests; /dev/fuse always takes a reply */
            (void)poll(&writable, 1, -1);
        else if (errno != EINTR)
            return; /* ENOENT: the caller was interrupted; ENODEV: unmounted, the drain will see it */
    }
}

/* Wait for the results of `n` writes. They are there when the system call returns, but for those to a socket that is full,
 * in tests. What did not go (the ring had no memory for it; its caller was interrupted) is written once more,
 * by itself, which says the same or succeeds: a lost answer would be a caller that waits for ever. */
static void take_results(struct replies *replies, unsigned n)
{
    struct io_uring_cqe *cqe;

    while (n > 0) {
        struct reply *reply;
        int result;

        if (io_uring_wait_cqe(&replies->ring, &cqe) < 0)
            continue; /* EINTR */
        reply = io_uring_cqe_get_data(cqe);
        result = cqe->res;
        io_uring_cqe_seen(&replies->ring, cqe);
        if (result < 0)
            replies_write(replies, reply->iov, reply->iovcnt);
        else if (replies->progress)
            replies->progress->answered++;
        n--;
    }
}

void replies_flush(struct replies *replies)
{
    unsigned count = replies->count;
    int written = 0;

    replies->gathering = 0;
    replies->count = 0;
    if (count > 1) {
        for (unsigned i = 0; i < count; i++) {
            struct reply *reply = &replies->gathered[i];
            struct io_uring_sqe *sqe = io_uring_get_sqe(&replies->ring);

            assert(sqe != NULL); /* as many as can be gathered, and none is left over */
            io_uring_prep_writev(sqe, replies->fd, reply->iov, (unsigned)reply->iovcnt, (uint64_t)-1);
            io_uring_sqe_set_data(sqe, reply);
        }
        written = io_uring_submit(&replies->ring);
        if (written > 0) {
            take_results(replies, (unsigned)written);
            *replies->together_count += (uint64_t)written;
        }
        ring_drop_rest(&replies->ring);
    }
    for (unsigned i = written > 0 ? (unsigned)written : 0; i < count; i++)
        replies_write(replies, replies->gathered[i].iov, replies->gathered[i].iovcnt);
}

/* Count one answer; at the end of a sample, decide about the next ones. */
static void sample(struct replies *replies)
{
    struct rusage usage;

    if (replies->manner != AIOFS_REPLIES_ADAPT || !replies->has_ring || replies->elsewhere)
        return;
    if (replies->together_left > 0) {
        if (--replies->together_left > 0)
            return;
    } else if (++replies->sample < SAMPLE) {
        return;
    }
    getrusage(RUSAGE_THREAD, &usage);
    if (replies->sample == SAMPLE && usage.ru_nivcsw - replies->switches >= SWITCHES_MANY)
        replies->together_left = TOGETHER;
    replies->sample = 0;
    replies->switches = usage.ru_nivcsw;
}

void replies_gather(struct replies *replies)
{
    replies->gathering =
        replies->has_ring && !replies->elsewhere && (replies->manner == AIOFS_REPLIES_TOGETHER || replies->together_left > 0);
}

/* The body stays the caller's, when it is not short. */
static void compose(struct reply *reply, uint64_t unique, int error, void *body, size_t size)
{
    static_assert(offsetof(struct reply, body) == sizeof reply->header, "a short answer is in one piece");
    reply->header = (struct fuse_out_header){
        .len = (uint32_t)(sizeof reply->header + size),
        .error = error,
        .unique = unique,
    };
    reply->iov[0] = (struct iovec){reply, sizeof reply->header};
    reply->iovcnt = 1;
    if (size > sizeof reply->body) {
        reply->iov[1] = (struct iovec){body, size};
        reply->iovcnt = 2;
    } else if (size > 0) {
        memcpy(&reply->body, body, size);
        reply->iov[0].iov_len += size;
    }
}

void replies_send(struct replies *replies, uint64_t unique, int error, void *body, size_t size)
{
    struct reply single;

    sample(replies);
    if (!replies->gathering) {
        compose(&single, unique, error, body, size);
        replies_write(replies, single.iov, single.iovcnt);
        return;
    }
    compose(&replies->gathered[replies->count++], unique, error, body, size);
    if (replies->count == REPLIES_GATHERED_MAX) {
        replies_flush(replies);
        replies->gathering = 1;
    }
}
