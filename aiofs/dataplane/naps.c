/* naps.c -- see naps.h. */
#include "naps.h"

#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define US INT64_C(1000)

/* Sooner than most ticks, which come every 4 ms or every ms, and so late that setting it is rare beside what it saves. */
#define DUE_NS (1000 * US)
#define AGAIN_NS (700 * US)

void naps_open(struct naps *naps)
{
    naps->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
}

void naps_close(struct naps *naps)
{
    if (naps->timer_fd >= 0)
        close(naps->timer_fd);
}

void naps_expect(struct naps *naps, int64_t now_ns)
{
    const struct itimerspec due = {.it_value.tv_nsec = DUE_NS};
    int is_close = now_ns - naps->batch_ns < DUE_NS;

    naps->batch_ns = now_ns;
    if (!is_close || now_ns - naps->set_ns < AGAIN_NS || naps->timer_fd < 0)
        return;
    naps->set_ns = now_ns;
    (void)timerfd_settime(naps->timer_fd, 0, &due, NULL);
}
