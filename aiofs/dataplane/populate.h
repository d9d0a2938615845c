/* populate.h -- memory that is there before it is used.
 *
 * To touch a page for the first time is to ask the kernel for memory, and when there is none, to wait until
 * some has been written back: by this server, when it is of a file system on one of its images. So the
 * loop's thread touches nothing for the first time. What it always needs is populated when it is made. What
 * it may need more of comes from stocks, which a thread of their own fills: that one may wait.
 */
#ifndef AIOFS_POPULATE_H
#define AIOFS_POPULATE_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Have all pages of memory[0..size) now. Keeps what is in them. Any thread; it may wait for memory. */
void populate(void *memory, size_t size);

/* calloc(3), populated. NULL: no memory. */
void *populated_calloc(size_t count, size_t size);

/* Have the next `size` bytes of the calling thread's stack. */
void populate_stack(size_t size);

/* Buffers of one size, one behind the other, of which the first `populated` may be used. */
struct stock {
    unsigned char *memory; /* page-aligned */
    size_t unit;           /* bytes of one buffer, whole pages */
    unsigned count;
    unsigned step;             /* how many more are asked for at once */
    _Atomic unsigned wanted;   /* of the filler: so many are to be populated */
    _Atomic unsigned populated;
};

/* Address space for `count` buffers of `unit` bytes, the first `step` of them populated. 0, or -ENOMEM. */
int stock_open(struct stock *stock, unsigned count, size_t unit, unsigned step);
void stock_close(struct stock *stock);

static inline unsigned char *stock_buffer(const struct stock *stock, unsigned i)
{
    return stock->memory + (size_t)i * stock->unit;
}

/* The thread that fills stocks. */
#define FILLER_STOCKS_MAX 2

struct filler {
    struct stock *stocks[FILLER_STOCKS_MAX];
    int wake_fd; /* an eventfd, rung when there is more */
    sem_t asked;
    atomic_bool stop;
    bool running;
    pthread_t thread;
};

/* 0, or -errno. The stocks and `wake_fd` stay open until filler_close. */
int filler_open(struct filler *filler, struct stock *first, struct stock *second, int wake_fd);
void filler_close(struct filler *filler);

/* All that is populated is in use: have some more soon. Never waits. One thread. */
void filler_ask(struct filler *filler, struct stock *stock);

#endif
