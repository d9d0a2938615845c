/* populate.c -- see populate.h. */
#include <alloca.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "populate.h"

#define PAGE 4096u
#define HUGE_PAGE ((size_t)2 << 20)

/* Buffers so long are better off in huge pages: a device is told of each piece of memory that is not next to the one before,
 * and 1 MiB of single pages is 256 pieces. For shorter ones nothing was gained. */
#define HUGE_ENOUGH ((size_t)1 << 20)

/* Linux 5.14; Debian 12's libc has it, older ones do not. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void populate(void *memory, size_t size)
{
    uintptr_t start = (uintptr_t)memory & ~(uintptr_t)(PAGE - 1);
    uintptr_t end = (uintptr_t)memory + size;

    if (size == 0 || madvise((void *)start, end - start, MADV_POPULATE_WRITE) == 0)
        return;
    /* An older kernel. A write that changes nothing, whoever else writes there. */
    for (uintptr_t page = start; page < end; page += PAGE)
        (void)__atomic_fetch_or((unsigned char *)(page < (uintptr_t)memory ? (uintptr_t)memory : page), 0,
                                __ATOMIC_RELAXED);
}

void *populated_calloc(size_t count, size_t size)
{
    void *memory = calloc(count, size);

    if (memory)
        populate(memory, count * size);
    return memory;
}

__attribute__((noinline)) void populate_stack(size_t size)
{
    volatile unsigned char *below = alloca(size);

    for (size_t at = size; at > 0; at -= at < PAGE ? at : PAGE) /* downwards, as a stack grows */
        below[at - 1] = 0;
}

/* ---- stocks ---- */

/* Returns how many it has populated. */
static unsigned fill(struct stock *stock)
{
    unsigned before = atomic_load_explicit(&stock->populated, memory_order_relaxed), populated;

    for (populated = before; populated < atomic_load(&stock->wanted); populated++) {
        populate(stock_buffer(stock, populated), stock->unit);
        atomic_store_explicit(&stock->populated, populated + 1, memory_order_release);
    }
    return populated - before;
}

/* Raise `wanted` by a step. */
static void want_more(struct stock *stock)
{
    unsigned wanted = atomic_load_explicit(&stock->wanted, memory_order_relaxed);
    unsigned left = stock->count - wanted;

    atomic_store(&stock->wanted, wanted + (left < stock->step ? left : stock->step));
}

static unsigned char *map(size_t size)
{
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

/* The same, beginning where a huge page can, and made of them where there are any. */
static unsigned char *map_huge(size_t size)
{
    unsigned char *memory = map(size + HUGE_PAGE);
    size_t before = -(uintptr_t)memory & (HUGE_PAGE - 1);

    if (!memory)
        return NULL;
    if (before)
        munmap(memory, before);
    munmap(memory + before + size, HUGE_PAGE - before);
    (void)madvise(memory + before, size, MADV_HUGEPAGE); /* EINVAL: a kernel without them */
    return memory + before;
}

int stock_open(struct stock *stock, unsigned count, size_t unit, unsigned step)
{
    unsigned char *memory = unit < HUGE_ENOUGH ? map(count * unit) : map_huge(count * unit);

    if (!memory)
        return -ENOMEM;
    *stock = (struct stock){.memory = memory, .unit = unit, .count = count, .step = step};
    want_more(stock);
    (void)fill(stock);
    return 0;
}

void stock_close(struct stock *stock)
{
    if (stock->memory)
        munmap(stock->memory, stock->count * stock->unit);
    *stock = (struct stock){0};
}

/* ---- the filler ---- */

static void *run(void *argument)
{
    struct filler *filler = argument;

    pthread_setname_np(pthread_self(), "aiofs-memory");
    while (!atomic_load(&filler->stop)) {
        unsigned filled = 0;

        for (int i = 0; i < FILLER_STOCKS_MAX; i++)
            filled += fill(filler->stocks[i]);
        /* The loop may be asleep for want of it, while a device answers nothing that would wake it. */
        if (filled)
            (void)eventfd_write(filler->wake_fd, 1);
        while (sem_wait(&filler->asked) < 0 && errno == EINTR)
            ;
    }
    return NULL;
}

int filler_open(struct filler *filler, struct stock *first, struct stock *second, int wake_fd)
{
    sigset_t all, before;
    int error;

    filler->stocks[0] = first;
    filler->stocks[1] = second;
    filler->wake_fd = wake_fd;
    sem_init(&filler->asked, 0, 0);
    sigfillset(&all); /* signals are for the threads that know what to do with them */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    error = -pthread_create(&filler->thread, NULL, run, filler);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    filler->running = error == 0;
    return error;
}

void filler_close(struct filler *filler)
{
    if (!filler->running)
        return;
    atomic_store(&filler->stop, true);
    sem_post(&filler->asked);
    pthread_join(filler->thread, NULL);
    sem_destroy(&filler->asked);
    filler->running = false;
}

void filler_ask(struct filler *filler, struct stock *stock)
{
    unsigned wanted = atomic_load_explicit(&stock->wanted, memory_order_relaxed);

    if (wanted == stock->count || wanted > atomic_load_explicit(&stock->populated, memory_order_relaxed))
        return; /* there is no more, or it is on its way */
    want_more(stock);
    sem_post(&filler->asked);
}
