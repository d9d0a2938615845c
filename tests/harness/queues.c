/* queues.c -- the AIO layer by itself: queues that submit, reap, flush and cancel, and the closed loop of
 * measure.c.
 *
 * Each slot has a range of the file of its own, and at most one io in flight there: so each knows what has
 * to come.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "exercise.h"
#include "kernel.h"

#define SLOTS 48
#define SLOT_BYTES 8192
#define PATIENCE_MS 60000

struct slot {
    int busy, write;
    unsigned char *buffer;
    unsigned char held[SLOT_BYTES]; /* what the file holds, without the io in flight */
};

static struct slot slots[SLOTS];
static aiofs_queue *queue;
static uint32_t depth;
static int file;

static int scratch_file(const char *directory)
{
    char path[512];
    int fd;

    snprintf(path, sizeof path, "%s/queue.img", directory);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, SLOTS * SLOT_BYTES) < 0)
        fail("%s: %s", path, strerror(errno));
    unlink(path);
    return fd;
}

static aiofs_io io_of(unsigned i)
{
    struct slot *s = &slots[i];

    return (aiofs_io){.id = i + 1, .op = s->write, .fd = file, .offset = (int64_t)i * SLOT_BYTES,
                      .length = SLOT_BYTES, .buffer = s->buffer};
}

static void submit(void)
{
    aiofs_io ios[8];
    unsigned n = 0;
    int32_t taken;

    for (unsigned i = (unsigned)random_below(SLOTS); i < SLOTS && n < 8; i += 1 + (unsigned)random_below(4)) {
        if (slots[i].busy)
            continue;
        slots[i].write = one_in(2);
        memset(slots[i].buffer, (int)random_below(256), SLOT_BYTES);
        ios[n++] = io_of(i);
    }
    taken = aiofs_queue_submit(queue, ios, n);
    if (taken < 0 || taken > (int32_t)n)
        fail("submit of %u: %d", n, taken);
    for (int32_t i = 0; i < taken; i++)
        slots[ios[i].id - 1].busy = 1;
}

static void reap(int wait)
{
    aiofs_io done[8];
    int32_t n;

    do
        n = aiofs_queue_reap(queue, done, 8, wait ? PATIENCE_MS : 0);
    while (n == -EINTR);
    if (n < 0 || (wait && n == 0))
        fail("reap: %d", n);
    for (int32_t i = 0; i < n; i++) {
        struct slot *s = &slots[done[i].id - 1];

        if (!s->busy || done[i].result != SLOT_BYTES)
            fail("io %lu came back with %ld", (unsigned long)done[i].id, (long)done[i].result);
        if (s->write)
            memcpy(s->held, s->buffer, SLOT_BYTES);
        else if (memcmp(s->held, s->buffer, SLOT_BYTES) != 0)
            fail("io %lu read what was not written", (unsigned long)done[i].id);
        s->busy = 0;
    }
}

static void cancel(void)
{
    unsigned i = (unsigned)random_below(SLOTS);
    int32_t result = aiofs_queue_cancel(queue, i + 1);

    if (slots[i].busy ? result != 0 && result != -EALREADY : result != -ENOENT)
        fail("cancel: %d", result);
    if (result == 0)
        slots[i].busy = 0;
}

/* What is wrong is refused, and nothing happens. */
static void misuse(void)
{
    aiofs_io io = io_of(0);

    if (aiofs_queue_in_flight(queue) == (int32_t)depth)
        return; /* a full queue takes nothing, and looks at nothing */
    if (slots[0].busy && aiofs_queue_submit(queue, &io, 1) != -EEXIST)
        fail("an id that is in flight was taken");
    io.fd = file + 1000;
    io.id = 9999;
    if (aiofs_queue_submit(queue, &io, 1) != -EBADF)
        fail("a descriptor that is not attached was taken");
    if (aiofs_queue_in_flight(queue) > 0 &&
        (aiofs_queue_close(queue) != -EBUSY || aiofs_queue_detach(queue, file) == 0))
        fail("a busy queue was closed");
}

void exercise_queue(const char *directory, const char *driver, unsigned operations)
{
    int error;

    aiofs_fault_reset(random_below(UINT32_MAX), 1);
    file = scratch_file(directory);
    for (unsigned i = 0; i < SLOTS; i++) {
        slots[i] = (struct slot){.buffer = malloc(SLOT_BYTES)};
        if (!slots[i].buffer)
            fail("no memory");
    }
    depth = 1 + (uint32_t)random_below(32);
    if (aiofs_queue_open(&queue, driver, depth) || aiofs_queue_attach(queue, file) < 0)
        fail("cannot open a queue");
    for (unsigned i = 0; i < operations; i++) {
        submit();
        if (one_in(2))
            cancel();
        if (one_in(10))
            misuse();
        reap(one_in(3) && aiofs_queue_in_flight(queue) > 0);
    }
    do
        error = aiofs_queue_flush(queue, PATIENCE_MS);
    while (error == -EINTR);
    if (error)
        fail("flush: %d", error);
    while (aiofs_queue_in_flight(queue) > 0)
        reap(1);
    if (aiofs_queue_detach(queue, file) || aiofs_queue_close(queue))
        fail("a queue with nothing in flight was not closed");
    for (unsigned i = 0; i < SLOTS; i++)
        free(slots[i].buffer);
    close(file);
}

/* ---- measure ---- */

static int32_t stop;

static void *stop_soon(void *argument)
{
    struct timespec soon = {.tv_nsec = 20000000};

    nanosleep(&soon, NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    return argument;
}

void exercise_measure(const char *directory, const char *driver)
{
    aiofs_workload workload = {.op = 1, .random = 1, .merge = 1, .depth = 16, .block_size = 4096,
                               .end = SLOTS * SLOT_BYTES, .count = 300, .seed = 1};
    aiofs_measurement found;
    pthread_t thread;
    int error;

    aiofs_fault_reset(random_below(UINT32_MAX), 1);
    workload.fd = scratch_file(directory);
    stop = 0;
    error = aiofs_measure(driver, &workload, &stop, &found);
    if (error || found.errors || found.requests < workload.count)
        fail("measure: error %d, %lu requests", error, (unsigned long)found.requests);
    workload.op = 0;
    workload.random = 0;
    workload.count = 0;
    if (pthread_create(&thread, NULL, stop_soon, NULL))
        fail("no thread");
    error = aiofs_measure(driver, &workload, &stop, &found);
    pthread_join(thread, NULL);
    if (error || found.errors)
        fail("measure until stopped: error %d, of %lu requests", error, (unsigned long)found.errors);
    close(workload.fd);
}
