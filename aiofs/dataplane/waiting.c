/* waiting.c -- see waiting.h. */
#include "waiting.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#define MS INT64_C(1000000)

/* A window that is compared lasts so long, and has so many requests. */
#define WINDOW_NS (100 * MS)
#define WINDOW_REQUESTS 64
/* A trial begins with what the kernel's load balancer needs to bring the caller here, or to take it away: 100-230 ms were
 * seen. The other manner has to be faster by more than one part in so many: identical windows differ by some percent. */
#define SETTLE_NS (250 * MS)
#define GAIN_PARTS 12
/* Where a device is waited for, a trial of looking is over before the balancer takes the caller away (10-20 ms), so that a
 * caller who stays loses nothing. Until then looking is up to a fifth faster than it will be: it has to be faster by more
 * than a quarter. When it gains less, but something, it is tried until the caller has gone, and for a window.
 * Where nothing but callers is waited for, it is slower until then: nobody runs while we look. */
#define SHORT_TRIAL_NS (8 * MS)
#define GAIN_PARTS_SHORT 4
#define SETTLE_LONGER_NS (50 * MS)
/* Until the first trial, and then four times as long each time that a trial finds nothing better. Where the first is one
 * of looking, it comes after the first window. What counts is work (waiting.h). */
#define HOLD_NS (4000 * MS)
#define HOLD_NS_MAX (64000 * MS)

/* A process that uses so many hundredths of a core keeps one; when it does, it has to use less than the fewer not to. fio
 * at depth 1 to 32 uses 10 to 70, QEMU with an emulated processor that has work 100 to 130. */
#define BUSY_PERCENT 90
#define BUSY_STILL_PERCENT 70
/* What began further back than this is not its load of now. */
#define STRETCH_NS_MAX (1000 * MS)

/* Requests come one by one when so much of the waits for I/O were for a lone one, and no longer when less than the lesser. */
#define LONE_ALL 1024
#define LONE_SHARE (LONE_ALL * 7 / 8)
#define LONE_SHARE_STILL (LONE_ALL / 2)
#define LONE_WAITS 32

/* In the moving average a wait counts for so many of the longest looks at most: one long wait, or two, are no idle mount,
 * and a few short ones after a long one are enough to look again. */
#define WAIT_LOOKS_MAX 2

/* A kernel thread is in no process group (0), as are few others: the first process of a container and those that
 * never left its group. Then, too, only the first choice is another one. Nobody (-1): it has ended. */
static int is_kernel_thread(uint32_t pid)
{
    return pid != 0 && getpgid((pid_t)pid) == 0;
}

/* Unknown for every thread but the first of a process: there is a clock for each process, under its own id only. What /proc
 * says of others costs memory to read (populate.h). */
static int64_t processor_ns(uint32_t pid)
{
    clockid_t clock;
    struct timespec t;

    if (pid == 0 || clock_getcpuclockid((pid_t)pid, &clock) || clock_gettime(clock, &t))
        return 0;
    return (int64_t)t.tv_sec * 1000 * MS + t.tv_nsec;
}

const struct waiting_callers waiting_callers = {is_kernel_thread, processor_ns};

void waiting_init(struct waiting *waiting, int64_t limit_ns, const struct waiting_callers *callers, uint64_t *trials)
{
    memset(waiting, 0, sizeof *waiting);
    waiting->limit_ns = limit_ns;
    waiting->wait_ns = WAIT_LOOKS_MAX * limit_ns;
    waiting->callers = callers;
    waiting->trials = trials;
}

/* Do processes that ask keep a core busy? Until one has been measured for a window, no. Where several ask, each is measured
 * in its turn. */
static int is_busy(struct waiting *waiting, int64_t now_ns, uint32_t pid)
{
    int64_t ns = now_ns - waiting->process.at_ns;

    if (waiting->process.pid && ns < WINDOW_NS)
        return waiting->process.is_busy;
    if (ns <= STRETCH_NS_MAX) {
        int64_t used = waiting->callers->processor_ns(waiting->process.pid) - waiting->process.processor_ns;

        waiting->process.is_busy =
            used >= ns / 100 * (waiting->process.is_busy ? BUSY_STILL_PERCENT : BUSY_PERCENT);
    }
    waiting->process.pid = pid;
    waiting->process.processor_ns = waiting->callers->processor_ns(pid);
    waiting->process.at_ns = now_ns;
    return waiting->process.is_busy;
}

static void hold(struct waiting *waiting, int64_t hold_ns)
{
    waiting->state = WAITING_HOLDING;
    waiting->hold_ns = hold_ns < HOLD_NS_MAX ? hold_ns : HOLD_NS_MAX;
    waiting->held_ns = 0;
}

static int64_t first_hold(const struct waiting *waiting)
{
    return waiting->looks ? HOLD_NS : 0;
}

static int is_trying(const struct waiting *waiting)
{
    return waiting->state == WAITING_SETTLING || waiting->state == WAITING_TRIAL;
}

/* Choose by who asks, when that has changed. Returns whether it has. */
static int take_caller(struct waiting *waiting, int64_t now_ns, uint32_t pid)
{
    int keeps_core = waiting->callers->is_kernel_thread(pid) || is_busy(waiting, now_ns, pid);
    int looks_first = keeps_core || waiting->is_lone;

    if (waiting->has_caller && keeps_core == waiting->keeps_core && looks_first == waiting->looks_first)
        return 0;
    waiting->has_caller = 1;
    waiting->keeps_core = keeps_core;
    waiting->looks = waiting->looks_first = looks_first;
    hold(waiting, first_hold(waiting));
    return 1;
}

static int64_t next_hold(const struct waiting *waiting)
{
    return waiting->hold_ns < HOLD_NS ? HOLD_NS : 4 * waiting->hold_ns;
}

/* Is the pace in the manner that was tried better than in the other one by more than one part in so many? */
static int is_faster(int64_t other_ns, int64_t tried_ns, int parts)
{
    return other_ns - tried_ns > other_ns / parts;
}

/* By so much that it is to stay? For a process whose requests come alone we look first, for its first moments; after them, looking has
 * to be worth the cores that it takes. */
static int is_gain(const struct waiting *waiting, int tried_looks, int64_t other_ns, int64_t tried_ns)
{
    if (!tried_looks && waiting->is_lone && !waiting->keeps_core)
        return !is_faster(tried_ns, other_ns, GAIN_PARTS);
    return is_faster(other_ns, tried_ns, waiting->is_short ? GAIN_PARTS_SHORT : GAIN_PARTS);
}

static void begin_trial(struct waiting *waiting)
{
    waiting->looks = !waiting->looks;
    waiting->is_short = waiting->looks && waiting->on_device;
    waiting->settle_ns = SETTLE_NS;
    waiting->state = waiting->is_short ? WAITING_TRIAL : WAITING_SETTLING;
}

/* A short trial has found a gain that it cannot promise. */
static int is_undecided(const struct waiting *waiting, int64_t pace_ns)
{
    return waiting->is_short && !is_gain(waiting, waiting->looks, waiting->pace_ns, pace_ns) &&
           is_faster(waiting->pace_ns, pace_ns, GAIN_PARTS);
}

static void try_longer(struct waiting *waiting)
{
    waiting->is_short = 0;
    waiting->settle_ns = SETTLE_LONGER_NS;
    waiting->state = WAITING_SETTLING;
}

/* A window ends, which was so long, with this pace. */
static void end_window(struct waiting *waiting, int64_t ns, int64_t pace_ns)
{
    switch (waiting->state) {
    case WAITING_QUIET:
        waiting->state = WAITING_HOLDING;
        break;
    case WAITING_HOLDING:
        waiting->held_ns += ns;
        if (waiting->held_ns <= waiting->hold_ns)
            break;
        waiting->pace_ns = pace_ns;
        begin_trial(waiting);
        break;
    case WAITING_SETTLING:
        waiting->state = WAITING_TRIAL;
        break;
    case WAITING_TRIAL:
        if (is_undecided(waiting, pace_ns)) {
            try_longer(waiting);
            break;
        }
        ++*waiting->trials;
        if (is_gain(waiting, waiting->looks, waiting->pace_ns, pace_ns)) {
            hold(waiting, first_hold(waiting));
            break;
        }
        waiting->looks = !waiting->looks;
        waiting->pace_ns = pace_ns;
        waiting->state = WAITING_RETURNING;
        break;
    case WAITING_RETURNING:
        waiting->state = WAITING_REVIEW;
        break;
    case WAITING_REVIEW:
        /* The trial may have changed who runs where for good, and the manner before it is not what it was. */
        if (is_gain(waiting, !waiting->looks, pace_ns, waiting->pace_ns)) {
            waiting->looks = !waiting->looks;
            hold(waiting, first_hold(waiting));
        } else {
            hold(waiting, next_hold(waiting));
        }
        break;
    }
}

static void be_quiet(struct waiting *waiting)
{
    if (is_trying(waiting)) {
        waiting->looks = !waiting->looks;
        hold(waiting, waiting->hold_ns);
    } else if (waiting->state == WAITING_RETURNING || waiting->state == WAITING_REVIEW) {
        hold(waiting, next_hold(waiting));
    }
    waiting->state = WAITING_QUIET;
}

static int64_t window_ns(const struct waiting *waiting)
{
    if (waiting->state == WAITING_SETTLING)
        return waiting->settle_ns;
    if (waiting->state == WAITING_RETURNING)
        return SETTLE_NS;
    return waiting->state == WAITING_TRIAL && waiting->is_short ? SHORT_TRIAL_NS : WINDOW_NS;
}

/* Waits are too long for looks to end them. */
static int is_idle(const struct waiting *waiting)
{
    return waiting->wait_ns >= waiting->limit_ns;
}

int waiting_sleeps(const struct waiting *waiting)
{
    return !waiting->looks || is_idle(waiting);
}

int waiting_looks(struct waiting *waiting, int64_t now_ns, uint64_t requests, uint32_t pid)
{
    int64_t ns = now_ns - waiting->start_ns;
    uint64_t count = requests - waiting->start_requests;
    int ends;

    if (is_idle(waiting)) {
        be_quiet(waiting);
        return 0;
    }
    ends = ns >= window_ns(waiting) && count >= WINDOW_REQUESTS;
    if (!ends && waiting->state != WAITING_QUIET)
        return waiting->looks;
    if (!take_caller(waiting, now_ns, pid))
        end_window(waiting, ns, count ? ns / (int64_t)count : 0);
    waiting->start_ns = now_ns;
    waiting->start_requests = requests;
    waiting->on_device = 0;
    return waiting->looks;
}

static void note_lone(struct waiting *waiting, int is_lone)
{
    waiting->lone_share += ((is_lone ? LONE_ALL : 0) - waiting->lone_share) / LONE_WAITS;
    waiting->is_lone = waiting->lone_share >= (waiting->is_lone ? LONE_SHARE_STILL : LONE_SHARE);
}

void waiting_note(struct waiting *waiting, int64_t ns, int on_device, int is_lone)
{
    int64_t longest_ns = WAIT_LOOKS_MAX * waiting->limit_ns;

    if (on_device)
        note_lone(waiting, is_lone);
    waiting->on_device |= on_device;
    waiting->wait_ns += ((ns < longest_ns ? ns : longest_ns) - waiting->wait_ns) / 8;
}
