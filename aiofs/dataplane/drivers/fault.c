/* fault.c -- the driver that tests misuse: it holds ios back, fails or shortens them, and remembers
 * what it was given. It works on real descriptors and stands behind the same contract as the others,
 * so what is tested with it is the data plane as it runs. It is not listed among the drivers and never
 * chosen; --aio fault does not exist.
 *
 * Threads: the instance belongs to the loop, the script (aiofs_fault_*) to the test's thread; one
 * mutex guards both. Ios are done at reap, in the order of submission.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "contract.h"
#include "driver.h"

#define RULES_MAX 64
#define LOG_MAX 65536
#define WAKES_MAX 16

struct aio {
    int event_fd;
    unsigned depth, in_flight;
    struct io *first, **last; /* accepted, not yet reaped, in order */
};

/* The script: one for all instances, because a test has one. */
static struct {
    pthread_mutex_t lock;
    int hold;
    aiofs_fault_rule rules[RULES_MAX];
    int rule_count;
    aiofs_fault_entry log[LOG_MAX];
    int log_count;
    int64_t overlaps;
    struct aio *instances[WAKES_MAX];
} script = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t io_length(const struct io *io)
{
    uint64_t length = io->op == IO_FALLOCATE ? (uint64_t)io->length : 0;

    for (int i = 0; i < io->iovcnt; i++)
        length += io->iov[i].iov_len;
    return length;
}

static void wake(const struct aio *aio)
{
    uint64_t one = 1;

    (void)!write(aio->event_fd, &one, sizeof one);
}

/* ---- the script ---- */

int32_t aiofs_fault_reset(void)
{
    pthread_mutex_lock(&script.lock);
    script.hold = script.rule_count = script.log_count = 0;
    script.overlaps = 0;
    pthread_mutex_unlock(&script.lock);
    return 0;
}

int32_t aiofs_fault_hold(int32_t hold)
{
    pthread_mutex_lock(&script.lock);
    script.hold = hold;
    for (int i = 0; i < WAKES_MAX; i++)
        if (script.instances[i])
            wake(script.instances[i]);
    pthread_mutex_unlock(&script.lock);
    return 0;
}

int32_t aiofs_fault_add(const aiofs_fault_rule *rule)
{
    int error = 0;

    pthread_mutex_lock(&script.lock);
    if (script.rule_count == RULES_MAX)
        error = -ENOSPC;
    else
        script.rules[script.rule_count++] = *rule;
    pthread_mutex_unlock(&script.lock);
    return error;
}

int32_t aiofs_fault_log(aiofs_fault_entry *out, uint32_t max)
{
    int n;

    pthread_mutex_lock(&script.lock);
    n = script.log_count < (int)max ? script.log_count : (int)max;
    for (int i = 0; i < n; i++)
        out[i] = script.log[i];
    pthread_mutex_unlock(&script.lock);
    return n;
}

int64_t aiofs_fault_overlaps(void)
{
    return script.overlaps;
}

/* ---- the driver ---- */

static int fault_probe(char *why, size_t size)
{
    (void)why;
    (void)size;
    return 0;
}

static int fault_open(struct aio **out, unsigned depth)
{
    struct aio *aio = calloc(1, sizeof *aio);
    int at = 0;

    if (!aio)
        return -ENOMEM;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    aio->depth = depth;
    aio->last = &aio->first;
    pthread_mutex_lock(&script.lock);
    while (at < WAKES_MAX && script.instances[at])
        at++;
    assert(at < WAKES_MAX);
    script.instances[at] = aio;
    pthread_mutex_unlock(&script.lock);
    *out = aio;
    return 0;
}

static void fault_close(struct aio *aio)
{
    pthread_mutex_lock(&script.lock);
    for (int i = 0; i < WAKES_MAX; i++)
        if (script.instances[i] == aio)
            script.instances[i] = NULL;
    pthread_mutex_unlock(&script.lock);
    close(aio->event_fd);
    free(aio);
}

static int fault_attach(struct aio *aio, int fd)
{
    (void)aio;
    (void)fd;
    return 0;
}

static void fault_detach(struct aio *aio, int file)
{
    (void)aio;
    (void)file;
}

static int changes_bytes(const struct io *io)
{
    return io->op == IO_WRITE || io->op == IO_FALLOCATE;
}

/* Storage gives no order between overlapping ios in flight, so there must never be any with one that changes
 * bytes. */
static int overlaps_one_in_flight(const struct aio *aio, const struct io *io)
{
    int64_t end = io->offset + (int64_t)io_length(io);

    for (const struct io *other = aio->first; other; other = other->next) {
        int64_t other_end = other->offset + (int64_t)io_length(other);

        if (other->fd != io->fd || (!changes_bytes(io) && !changes_bytes(other)))
            continue;
        if (io->offset < other_end && other->offset < end)
            return 1;
    }
    return 0;
}

static void note(const struct io *io, uint32_t batch)
{
    if (script.log_count < LOG_MAX)
        script.log[script.log_count++] = (aiofs_fault_entry){
            .op = (int32_t)io->op,
            .fd = io->fd,
            .offset = io->offset,
            .length = io_length(io),
            .segments = (uint32_t)io->iovcnt,
            .batch = batch,
        };
}

static int fault_submit(struct aio *aio, struct io *const *ios, int n)
{
    int accepted = 0;

    pthread_mutex_lock(&script.lock);
    while (accepted < n && aio->in_flight < aio->depth) {
        struct io *io = ios[accepted++];

        script.overlaps += overlaps_one_in_flight(aio, io);
        note(io, (uint32_t)n);
        io->next = NULL;
        *aio->last = io;
        aio->last = &io->next;
        aio->in_flight++;
    }
    pthread_mutex_unlock(&script.lock);
    wake(aio);
    return accepted;
}

static int fault_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

static int has_range(const struct io *io)
{
    return io->op == IO_READ || changes_bytes(io);
}

static aiofs_fault_rule *rule_for(const struct io *io)
{
    for (int i = 0; i < script.rule_count; i++) {
        aiofs_fault_rule *rule = &script.rules[i];

        if (rule->times == 0 || rule->op != (int32_t)io->op)
            continue;
        if (!has_range(io) || (io->offset < rule->to && rule->from < io->offset + (int64_t)io_length(io)))
            return rule;
    }
    return NULL;
}

/* Do at most `limit` bytes of a READ or WRITE. */
static int64_t perform_short(const struct io *io, int64_t limit)
{
    struct iovec first = io->iov[0]; /* a short result that ends within the first segment is short enough */
    struct io less = *io;

    if ((int64_t)first.iov_len > limit)
        first.iov_len = (size_t)limit;
    less.iov = &first;
    less.iovcnt = 1;
    return limit ? io_perform(&less) : 0;
}

static int64_t perform(const struct io *io)
{
    aiofs_fault_rule *rule = rule_for(io);

    if (!rule)
        return io_perform(io);
    if (rule->times > 0)
        rule->times--;
    if (rule->result < 0)
        return rule->result;
    return io->iovcnt ? perform_short(io, rule->result) : io_perform(io);
}

static int fault_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;

    pthread_mutex_lock(&script.lock);
    while (n < max && aio->first && !script.hold) {
        struct io *io = aio->first;

        aio->first = io->next;
        if (!aio->first)
            aio->last = &aio->first;
        aio->in_flight--;
        io->result = perform(io);
        out[n++] = io;
    }
    pthread_mutex_unlock(&script.lock);
    return n;
}

const struct driver driver_fault = {
    .name = "fault",
    .description = "for tests: holds, fails, shortens and records ios",
    .operations = (1u << IO_OPS) - 1,
    .probe = fault_probe,
    .open = fault_open,
    .attach = fault_attach,
    .detach = fault_detach,
    .submit = fault_submit,
    .event_fd = fault_event_fd,
    .reap = fault_reap,
    .close = fault_close,
};
