/* fault_plan.c -- the plan of the fault drivers: which io is struck by what, and the account of it. One for
 * the whole process, because a mount or a test has one; knows nothing of how an io is delayed or failed.
 *
 * Threads: any. The loop judges, Python sets the plan up and reads the account; one mutex guards all of it.
 * Order: faults are asked in the order in which they were added. Delays and stalls add up; of errors and
 * short results the first that strikes is the io's fate, and the later ones do not count it: two faults for
 * "the first write" strike the first and the second.
 * Chance is a hash of the seed, the fault and the number of the io: a plan strikes the same numbers each time.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "contract.h"
#include "fault_plan.h"

#define LOG_MAX 65536
#define WATCHERS_MAX 64

static struct {
    pthread_mutex_t lock;
    bool held, reorder;
    uint64_t seed, shuffles;
    aiofs_fault faults[AIOFS_FAULTS_MAX];
    uint64_t seen[AIOFS_FAULTS_MAX]; /* ios that each may strike, so far */
    int fault_count;
    aiofs_fault_counts counts;
    aiofs_fault_entry log[LOG_MAX]; /* never written, so never backed by memory, where there are no faults */
    int log_count;
    int watchers[WATCHERS_MAX];
    int watcher_count;
} plan = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* splitmix64's mixer (Steele, Lea, Flood 2014). */
static uint64_t hash(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* ---- set up and read: api.h ---- */

int32_t aiofs_fault_reset(uint64_t seed, int32_t reorder)
{
    pthread_mutex_lock(&plan.lock);
    plan.seed = seed;
    plan.reorder = reorder != 0;
    plan.held = false;
    plan.shuffles = 0;
    plan.fault_count = plan.log_count = 0;
    plan.counts = (aiofs_fault_counts){0};
    pthread_mutex_unlock(&plan.lock);
    return 0;
}

int32_t aiofs_fault_add(const aiofs_fault *fault)
{
    int error = 0;
    pthread_mutex_lock(&plan.lock);
    if (plan.fault_count == AIOFS_FAULTS_MAX) {
        error = -ENOSPC;
    } else {
        plan.seen[plan.fault_count] = 0;
        plan.faults[plan.fault_count++] = *fault;
    }
    pthread_mutex_unlock(&plan.lock);
    return error;
}

int32_t aiofs_fault_read(aiofs_fault_counts *out)
{
    pthread_mutex_lock(&plan.lock);
    *out = plan.counts;
    pthread_mutex_unlock(&plan.lock);
    return 0;
}

int32_t aiofs_fault_hold(int32_t hold)
{
    pthread_mutex_lock(&plan.lock);
    plan.held = hold != 0;
    for (int i = 0; i < plan.watcher_count; i++)
        (void)eventfd_write(plan.watchers[i], 1);
    pthread_mutex_unlock(&plan.lock);
    return 0;
}

int32_t aiofs_fault_log(aiofs_fault_entry *out, uint32_t max)
{
    pthread_mutex_lock(&plan.lock);
    int n = plan.log_count < (int)max ? plan.log_count : (int)max;
    for (int i = 0; i < n; i++)
        out[i] = plan.log[i];
    pthread_mutex_unlock(&plan.lock);
    return n;
}

/* ---- judge ---- */

int64_t fault_plan_length(const struct io *io)
{
    int64_t length = io->op == IO_FALLOCATE ? io->length : 0;
    if (io->op == IO_READ || io->op == IO_WRITE)
        for (int i = 0; i < io->iovcnt; i++)
            length += (int64_t)io->iov[i].iov_len;
    return length;
}

/* Could the fault strike this io, its number and chance apart? */
static bool is_about(const aiofs_fault *fault, const struct io *io, int64_t length)
{
    bool has_range = io->op == IO_READ || io->op == IO_WRITE || io->op == IO_FALLOCATE;
    if ((fault->ops & 1u << io->op) == 0 || (fault->spares_threads && io->blocks))
        return false;
    if (has_range && (io->offset >= fault->to || fault->from - io->offset >= length))
        return false;
    if (fault->kind == AIOFS_FAULT_SHORT) /* one byte has no half, and what is not longer is not cut */
        return (io->op == IO_READ || io->op == IO_WRITE) && length > (fault->value < 0 ? 1 : fault->value);
    return true;
}

static bool strikes(int index)
{
    const aiofs_fault *fault = &plan.faults[index];
    uint64_t number = ++plan.seen[index];
    return number >= fault->first && number <= fault->last &&
           hash(plan.seed + (uint64_t)index, number) >> 32 < fault->chance;
}

/* Half, in whole sectors where there is more than one. */
static int64_t half(int64_t length)
{
    return length >= 1024 ? length / 2 & ~(int64_t)511 : length / 2;
}

static void apply(struct fault_verdict *verdict, const aiofs_fault *fault, int64_t length)
{
    switch (fault->kind) {
    case AIOFS_FAULT_DELAY:
        verdict->delay_ns += fault->value;
        break;
    case AIOFS_FAULT_STALL:
        verdict->stall_ns += fault->value;
        break;
    case AIOFS_FAULT_SHORT:
        verdict->fate = FAULT_SHORT;
        verdict->value = fault->value < 0 ? half(length) : fault->value;
        break;
    default:
        verdict->fate = FAULT_ERROR;
        verdict->value = fault->value;
    }
}

static void note(const struct io *io, uint32_t batch, int64_t length, bool overlaps)
{
    plan.counts.ios++;
    plan.counts.overlaps += overlaps;
    if (plan.log_count == LOG_MAX)
        return;
    plan.log[plan.log_count++] = (aiofs_fault_entry){
        .op = (int32_t)io->op,
        .fd = io->fd,
        .offset = io->offset,
        .length = (uint64_t)length,
        .segments = (uint32_t)io->iovcnt,
        .batch = batch,
        .blocks = io->blocks != 0,
    };
}

struct fault_verdict fault_plan_judge(const struct io *io, uint32_t batch, bool overlaps)
{
    struct fault_verdict verdict = {.fate = FAULT_NONE};
    int64_t length = fault_plan_length(io);
    pthread_mutex_lock(&plan.lock);
    note(io, batch, length, overlaps);
    for (int i = 0; i < plan.fault_count; i++) {
        const aiofs_fault *fault = &plan.faults[i];
        bool decides = fault->kind == AIOFS_FAULT_ERROR || fault->kind == AIOFS_FAULT_SHORT;
        if ((decides && verdict.fate != FAULT_NONE) || !is_about(fault, io, length) || !strikes(i))
            continue;
        plan.counts.struck[i]++;
        apply(&verdict, fault, length);
    }
    pthread_mutex_unlock(&plan.lock);
    return verdict;
}

bool fault_plan_held(void)
{
    pthread_mutex_lock(&plan.lock);
    bool held = plan.held;
    pthread_mutex_unlock(&plan.lock);
    return held;
}

unsigned fault_plan_shuffle(unsigned limit)
{
    pthread_mutex_lock(&plan.lock);
    unsigned chosen = limit - 1;
    if (plan.reorder)
        chosen = (unsigned)(hash(~plan.seed, plan.shuffles++) >> 32) % limit;
    pthread_mutex_unlock(&plan.lock);
    return chosen;
}

int fault_plan_watch(int event_fd)
{
    int error = -EMFILE;
    pthread_mutex_lock(&plan.lock);
    if (plan.watcher_count < WATCHERS_MAX) {
        plan.watchers[plan.watcher_count++] = event_fd;
        error = 0;
    }
    pthread_mutex_unlock(&plan.lock);
    return error;
}

void fault_plan_forget(int event_fd)
{
    pthread_mutex_lock(&plan.lock);
    for (int i = 0; i < plan.watcher_count; i++)
        if (plan.watchers[i] == event_fd)
            plan.watchers[i--] = plan.watchers[--plan.watcher_count];
    pthread_mutex_unlock(&plan.lock);
}
