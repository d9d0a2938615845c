/* replies.h -- answers to the kernel: written one by one, or several in one system call.
 *
 * An answer ends the caller's request on this thread's time. Where the caller is a file on a block layer (a loop
 * device above all), the rest of its completion is left to ksoftirqd, which takes this core as soon as the
 * write returns to user mode: two switches for each answer. Written together, through a ring of its own,
 * 8 answers cost it once. Where nobody takes the core, one by one is the better way: the caller is at work on the
 * first while the next is being written. README.md has figures for both. So what happens is counted: this
 * thread's involuntary switches over a sample of answers decide how the next ones are written.
 *
 * Threads: the loop's, from replies_start on; another one in its place says so (`elsewhere`), and answers one by one, uncounted.
 * States of an answer: sent -> written; or, between gather and flush: sent -> gathered -> written.
 * Invariant: what an answer points to stays as it is until flush has returned.
 */
#ifndef AIOFS_REPLIES_H
#define AIOFS_REPLIES_H

#include <liburing.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "contract.h"

#define REPLIES_GATHERED_MAX 16

struct reply {
    struct fuse_out_header header;
    union {
        struct fuse_write_out write;
        struct fuse_lseek_out lseek;
    } body; /* of a short answer: one piece of memory with the header, as the kernel looks up the page of each */
    struct iovec iov[2];
    int iovcnt;
};

struct replies {
    int fd;
    uint32_t manner;              /* AIOFS_REPLIES_* */
    aiofs_progress *progress;     /* or NULL */
    uint64_t *together_count;     /* answers that shared a system call */
    struct io_uring ring;
    int has_ring;
    int elsewhere;                /* it is not the loop's thread that answers now */
    int gathering;
    unsigned count;               /* gathered */
    unsigned sample;              /* answers since the last look at the switches */
    unsigned together_left;       /* answers to be gathered before the next sample */
    long switches;                /* at that look */
    struct reply gathered[REPLIES_GATHERED_MAX];
};

void replies_init(struct replies *replies, const aiofs_config *config, uint64_t *together_count);
/* In the loop's thread, before its first answer. Without a ring (io_uring is refused, no memory) all are written singly. */
void replies_start(struct replies *replies);
void replies_close(struct replies *replies);

/* Write a whole reply, at once. */
void replies_write(struct replies *replies, const struct iovec *iov, int iovcnt);
/* Answer: error <= 0 and `size` bytes of body. */
void replies_send(struct replies *replies, uint64_t unique, int error, void *body, size_t size);
/* From here to flush, answers may wait for one another. */
void replies_gather(struct replies *replies);
void replies_flush(struct replies *replies);

#endif
