/* measure.c -- one driver under a closed loop (aiofs_measure of api.h): a number of requests is kept in
 * flight on one descriptor, and what that cost is counted. For `aiofs bench`; knows the queue, no FUSE.
 *
 * Threads: one, the caller's. What the process uses meanwhile is counted as the driver's, because its
 * threads (the pool of `threads`, glibc's, io_uring's workers) belong to the process: run it alone.
 * States of a request: idle -> in flight (alone, or joined to the io of its leader) -> idle.
 * Invariants: idle + in flight == depth == the queue's depth, so the queue accepts everything.
 * Allocates before the loop only, and touches its memory there, so that no page fault is measured.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "contract.h"
#include "merge.h"
#include "queue.h"

#define DEPTH_MAX 1024u
#define BLOCK_MAX (1u << 20)
#define SECTOR 512u

/* Finished ios taken at once: the loop looks for new ones before it submits what became idle. */
#define REAP_MAX 64

/* Latencies are counted in buckets, each power of two parted into 32: 3 % wide. */
#define BUCKET_BITS 5
#define BUCKETS ((64 - BUCKET_BITS) << BUCKET_BITS)

struct request {
    struct io io; /* the first member: an io of the queue is its request */
    struct iovec iov;
    int64_t started_ns;
    char *block;
    struct request *joined; /* the next of the same io */
};

struct run {
    const aiofs_workload *w;
    const int32_t *stop;
    struct queue *queue;
    struct merge *merge;
    struct request *requests;
    struct request **idle, **batch;
    struct io **ios;
    struct span *spans;
    int32_t *heads;
    struct iovec *segments; /* for each request room for `segments_max` */
    unsigned segments_max;
    unsigned idle_count;
    char *memory;
    size_t memory_size;
    uint64_t random; /* state of the generator */
    uint64_t issued;
    int64_t now_ns, warm_until_ns, end_ns;
    aiofs_measurement sum;    /* since the loop began */
    aiofs_measurement before; /* what it was when counting began */
    uint64_t latencies[BUCKETS];
};

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- latencies ---- */

/* Values below 2^BUCKET_BITS have a bucket each; above, a bucket is the leading bit and the 5 after it. */
static unsigned bucket_of(uint64_t ns)
{
    if (ns < 1u << BUCKET_BITS)
        return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - BUCKET_BITS;
    return ((shift + 1) << BUCKET_BITS) + (unsigned)(ns >> shift & ((1u << BUCKET_BITS) - 1));
}

/* The middle of a bucket. */
static int64_t bucket_ns(unsigned bucket)
{
    unsigned shift = bucket >> BUCKET_BITS;
    uint64_t low = bucket & ((1u << BUCKET_BITS) - 1);
    if (shift == 0)
        return (int64_t)low;
    return (int64_t)(((low | 1u << BUCKET_BITS) << (shift - 1)) + ((uint64_t)1 << (shift - 1)) / 2);
}

/* The latency that `share` of the requests did not pass. */
static int64_t percentile(const struct run *run, uint64_t requests, double share)
{
    uint64_t wanted = (uint64_t)((double)requests * share), seen = 0;
    unsigned bucket = 0;
    while (bucket < BUCKETS - 1 && (seen += run->latencies[bucket]) <= wanted)
        bucket++;
    int64_t middle = bucket_ns(bucket);
    return middle < run->sum.max_ns ? middle : run->sum.max_ns;
}

/* ---- counting ---- */

static int64_t time_ns(struct timeval t)
{
    return (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_usec * 1000;
}

/* Everything up to now. */
static aiofs_measurement so_far(const struct run *run)
{
    struct rusage used;
    aiofs_measurement m = run->sum;
    getrusage(RUSAGE_SELF, &used);
    m.elapsed_ns = clock_ns();
    m.cpu_ns = time_ns(used.ru_utime) + time_ns(used.ru_stime);
    m.switches = used.ru_nvcsw;
    m.preemptions = used.ru_nivcsw;
    return m;
}

static void begin_counting(struct run *run)
{
    memset(run->latencies, 0, sizeof run->latencies);
    run->sum.max_ns = run->sum.submit_max_ns = 0;
    run->before = so_far(run);
    run->warm_until_ns = INT64_MAX;
    run->end_ns = run->w->duration_ns > 0 ? clock_ns() + run->w->duration_ns : INT64_MAX;
}

static aiofs_measurement counted(const struct run *run)
{
    const aiofs_measurement *before = &run->before;
    aiofs_measurement m = so_far(run);
    m.requests -= before->requests;
    m.ios -= before->ios;
    m.submits -= before->submits;
    m.elapsed_ns -= before->elapsed_ns;
    m.cpu_ns -= before->cpu_ns;
    m.switches -= before->switches;
    m.preemptions -= before->preemptions;
    m.submit_ns -= before->submit_ns;
    m.submit_switches -= before->submit_switches;
    m.p50_ns = percentile(run, m.requests, 0.50);
    m.p99_ns = percentile(run, m.requests, 0.99);
    return m;
}

/* ---- submit ---- */

/* splitmix64: one multiplication chain for each number, and any seed will do. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int64_t next_offset(struct run *run)
{
    const aiofs_workload *w = run->w;
    uint64_t blocks = (uint64_t)(w->end - w->start) / w->block_size;
    uint64_t block = run->issued % blocks;
    if (w->random)
        block = (uint64_t)((unsigned __int128)next_random(&run->random) * blocks >> 64);
    return w->start + (int64_t)(block * w->block_size);
}

static void prepare(struct run *run, struct request *r)
{
    if (run->w->numbered)
        memcpy(r->block, &run->issued, sizeof run->issued);
    r->io.offset = next_offset(run);
    r->io.iov = &r->iov;
    r->io.iovcnt = 1;
    r->joined = NULL;
    run->issued++;
}

/* Make the io of the chain that begins at batch[head]. */
static struct io *join(struct run *run, int32_t head)
{
    struct request *first = run->batch[head], *last = first;
    if (run->spans[head].next < 0)
        return &first->io;
    struct iovec *segments = run->segments + (size_t)(first - run->requests) * run->segments_max;
    int count = 0;
    for (int32_t i = head; i >= 0; i = run->spans[i].next) {
        struct request *r = run->batch[i];
        segments[count++] = r->iov;
        if (r != first)
            last->joined = r;
        last = r;
    }
    first->io.iov = segments;
    first->io.iovcnt = count;
    return &first->io;
}

/* The batch as ios; how many they are. */
static int make_ios(struct run *run, int n)
{
    if (run->merge == NULL) {
        for (int i = 0; i < n; i++)
            run->ios[i] = &run->batch[i]->io;
        return n;
    }
    for (int i = 0; i < n; i++)
        run->spans[i] = (struct span){.offset = run->batch[i]->io.offset, .length = run->w->block_size};
    int ios = merge_plan(run->merge, run->spans, n, run->heads);
    for (int i = 0; i < ios; i++)
        run->ios[i] = join(run, run->heads[i]);
    return ios;
}

static int64_t own_switches(const struct run *run)
{
    struct rusage used;
    if (!run->w->watch)
        return 0;
    getrusage(RUSAGE_THREAD, &used);
    return used.ru_nvcsw;
}

/* Everything idle becomes one batch. */
static void issue(struct run *run)
{
    uint64_t left = run->w->count > 0 ? run->w->count - run->issued : UINT64_MAX;
    int n = (int)(run->idle_count < left ? run->idle_count : left);
    if (n == 0)
        return;
    for (int i = 0; i < n; i++) {
        run->batch[i] = run->idle[--run->idle_count];
        prepare(run, run->batch[i]);
    }
    int ios = make_ios(run, n);
    int64_t switches = own_switches(run), start = clock_ns();
    for (int i = 0; i < n; i++)
        run->batch[i]->started_ns = start;
    int accepted = queue_submit(run->queue, run->ios, ios);
    assert(accepted == ios);
    run->now_ns = clock_ns();
    int64_t spent = run->now_ns - start;
    run->sum.submit_switches += own_switches(run) - switches;
    run->sum.submit_ns += spent;
    if (spent > run->sum.submit_max_ns)
        run->sum.submit_max_ns = spent;
    run->sum.submits++;
}

/* ---- reap ---- */

static void note_failure(struct run *run, const struct io *io, uint64_t requests)
{
    if (run->sum.errors == 0)
        run->sum.error = io->result < 0 ? io->result : -ENODATA;
    run->sum.errors += requests;
}

static void finish(struct run *run, struct io *io)
{
    struct request *r = (struct request *)io;
    uint64_t requests = 0;
    for (; r != NULL; r = r->joined) {
        int64_t took = run->now_ns - r->started_ns;
        run->latencies[bucket_of((uint64_t)took)]++;
        if (took > run->sum.max_ns)
            run->sum.max_ns = took;
        run->idle[run->idle_count++] = r;
        requests++;
    }
    run->sum.ios++;
    run->sum.requests += requests;
    if (io->result != (int64_t)(requests * run->w->block_size))
        note_failure(run, io, requests);
}

/* What has finished becomes idle; sleeps when nothing has. */
static void collect(struct run *run)
{
    struct io *done[REAP_MAX];
    int n = queue_reap(run->queue, done, REAP_MAX);
    if (n == 0)
        (void)queue_wait(run->queue, -1); /* EINTR: the loop looks at the stop flag */
    else
        run->now_ns = clock_ns();
    for (int i = 0; i < n; i++)
        finish(run, done[i]);
}

static bool is_over(const struct run *run)
{
    return run->now_ns >= run->end_ns || run->sum.errors > 0 ||
           (run->w->count > 0 && run->sum.requests >= run->w->count) ||
           __atomic_load_n(run->stop, __ATOMIC_RELAXED) != 0;
}

/* ---- open, run, close ---- */

static void release(struct run *run)
{
    if (run->queue != NULL)
        queue_close(run->queue);
    if (run->memory != NULL)
        munmap(run->memory, run->memory_size);
    merge_free(run->merge);
    free(run->requests);
    free(run->idle);
    free(run->batch);
    free(run->ios);
    free(run->spans);
    free(run->heads);
    free(run->segments);
    free(run);
}

static bool is_valid(const aiofs_workload *w)
{
    return (w->op == IO_READ || w->op == IO_WRITE) && w->depth >= 1 && w->depth <= DEPTH_MAX &&
           w->block_size >= SECTOR && w->block_size <= BLOCK_MAX && w->block_size % SECTOR == 0 &&
           w->start >= 0 && w->end >= w->start + w->block_size && w->duration_ns >= 0;
}

/* What only merging needs. */
static int allocate_merge(struct run *run)
{
    unsigned depth = run->w->depth, full = MERGE_BYTES_MAX / run->w->block_size;
    if (!run->w->merge)
        return 0;
    if (full > MERGE_SPANS_MAX)
        full = MERGE_SPANS_MAX;
    run->segments_max = depth < full ? depth : full;
    run->merge = merge_new(depth);
    run->spans = calloc(depth, sizeof *run->spans);
    run->heads = calloc(depth, sizeof *run->heads);
    run->segments = calloc((size_t)depth * run->segments_max, sizeof *run->segments);
    return run->merge == NULL || run->spans == NULL || run->heads == NULL || run->segments == NULL ? -ENOMEM : 0;
}

static int allocate(struct run *run)
{
    unsigned depth = run->w->depth;
    run->requests = calloc(depth, sizeof *run->requests);
    run->idle = calloc(depth, sizeof(struct request *));
    run->batch = calloc(depth, sizeof(struct request *));
    run->ios = calloc(depth, sizeof(struct io *));
    if (run->requests == NULL || run->idle == NULL || run->batch == NULL || run->ios == NULL)
        return -ENOMEM;
    run->memory_size = (size_t)depth * run->w->block_size;
    void *memory = mmap(NULL, run->memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    run->memory = memory;
    return allocate_merge(run);
}

/* What is written is random, so that no file system gains by compressing it. */
static void fill(struct run *run, int file)
{
    for (size_t at = 0; at < run->memory_size; at += sizeof(uint64_t)) {
        uint64_t value = next_random(&run->random);
        memcpy(run->memory + at, &value, sizeof value);
    }
    for (unsigned i = 0; i < run->w->depth; i++) {
        struct request *r = &run->requests[i];
        r->block = run->memory + (size_t)i * run->w->block_size;
        r->iov = (struct iovec){.iov_base = r->block, .iov_len = run->w->block_size};
        r->io = (struct io){.op = (enum io_op)run->w->op, .fd = run->w->fd, .file = file};
        run->idle[run->idle_count++] = r;
    }
}

static aiofs_measurement loop(struct run *run)
{
    begin_counting(run);
    if (run->w->warm_up_ns > 0) {
        run->warm_until_ns = clock_ns() + run->w->warm_up_ns;
        run->end_ns = INT64_MAX;
    }
    while (!is_over(run)) {
        issue(run);
        collect(run);
        if (run->now_ns >= run->warm_until_ns)
            begin_counting(run);
    }
    aiofs_measurement m = counted(run);
    while (queue_in_flight(run->queue) > 0)
        collect(run);
    m.errors = run->sum.errors;
    m.error = run->sum.error;
    return m;
}

int32_t aiofs_measure(const char *driver, const aiofs_workload *workload, const int32_t *stop,
                      aiofs_measurement *out)
{
    const struct driver *found = driver_by_name(driver);
    if (found == NULL)
        return -ENOENT;
    if (!is_valid(workload))
        return -EINVAL;
    struct run *run = calloc(1, sizeof *run);
    if (run == NULL)
        return -ENOMEM;
    run->w = workload;
    run->stop = stop;
    run->random = workload->seed;
    int error = allocate(run);
    if (error == 0)
        error = queue_open(&run->queue, found, workload->depth);
    int file = error == 0 ? queue_attach(run->queue, workload->fd) : error;
    if (file >= 0) {
        fill(run, file);
        *out = loop(run);
        queue_detach(run->queue, file);
    }
    release(run);
    return file < 0 ? file : 0;
}
