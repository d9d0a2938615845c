/* testing.c -- the pure rooms (merge, protocol, histogram, waiting, lumps) made callable for the tests,
 * and what merging costs, for scripts/bench. No state of a plane. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "contract.h"
#include "histogram.h"
#include "lumps.h"
#include "merge.h"
#include "protocol.h"
#include "waiting.h"

int32_t aiofs_merge(aiofs_span *spans, uint32_t n, int32_t *heads)
{
    struct merge *m = merge_new(n ? n : 1);
    int ios;

    if (!m)
        return -ENOMEM;
    _Static_assert(sizeof(aiofs_span) == sizeof(struct span), "one layout, two names");
    ios = merge_plan(m, (struct span *)(void *)spans, (int)n, heads);
    merge_free(m);
    return ios;
}

static int64_t thread_time_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t aiofs_merge_cost_ns(const aiofs_span *spans, uint32_t n, uint32_t batches)
{
    uint32_t size = n ? n : 1;
    struct merge *m = merge_new(size);
    struct span *copy = calloc(size, sizeof *copy);
    int32_t *heads = calloc(size, sizeof *heads);
    int64_t spent = -ENOMEM;

    if (m && copy && heads) {
        spent = -thread_time_ns();
        for (uint32_t i = 0; i < batches; i++) {
            memcpy(copy, spans, n * sizeof *copy); /* as the loop writes them for each batch */
            merge_plan(m, copy, (int)n, heads);
        }
        spent += thread_time_ns();
    }
    free(heads);
    free(copy);
    merge_free(m);
    return spent;
}

/* The message is put directly before a page that cannot be read: a parser that looks past its end
 * does not survive the test. */
int32_t aiofs_parse(const void *data, uint32_t size, aiofs_message *out)
{
    const size_t page = 4096;
    uint32_t head = size < WIRE_HEAD ? size : (uint32_t)WIRE_HEAD;
    struct message message;
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED || mprotect(memory + page, page, PROT_NONE) < 0)
        return -errno;
    memcpy(memory + page - head, data, head);
    protocol_parse(&message, memory + page - head, size);
    munmap(memory, 2 * page);
    *out = (aiofs_message){
        .kind = (int32_t)message.kind,
        .opcode = message.opcode,
        .unique = message.unique,
        .node = message.node,
        .offset = message.offset,
        .length = message.length,
        .mode = message.mode,
    };
    return 0;
}

uint32_t aiofs_latency_bucket(uint64_t ns)
{
    return histogram_bucket(ns);
}

static struct {
    struct waiting waiting;
    int64_t now_ns, processor_ns;
    uint64_t requests, looks, trials;
    int32_t on_device, is_lone;
} waits;

#define PROCESS 1
#define KERNEL_THREAD 2

static int is_kernel_thread(uint32_t pid)
{
    return pid == KERNEL_THREAD;
}

static int64_t processor_ns(uint32_t pid)
{
    return pid == PROCESS ? waits.processor_ns : 0;
}

void aiofs_waiting_reset(int64_t limit_ns, int32_t on_device, int32_t is_lone)
{
    static const struct waiting_callers callers = {is_kernel_thread, processor_ns};

    memset(&waits, 0, sizeof waits);
    waits.on_device = on_device;
    waits.is_lone = is_lone;
    waiting_init(&waits.waiting, limit_ns, &callers, &waits.trials);
}

uint64_t aiofs_waiting_run(int64_t until_ns, int64_t sleep_ns, int64_t look_ns, int32_t processor_percent,
                           uint64_t *looks)
{
    while (waits.now_ns < until_ns) {
        uint32_t pid = processor_percent < 0 ? KERNEL_THREAD : PROCESS;
        int manner = waiting_looks(&waits.waiting, waits.now_ns, waits.requests, pid);
        int64_t ns = manner ? look_ns : sleep_ns;

        waits.requests++;
        waits.looks += (uint64_t)manner;
        waits.now_ns += ns;
        waits.processor_ns += processor_percent > 0 ? ns * processor_percent / 100 : 0;
        waiting_note(&waits.waiting, ns, waits.on_device, waits.is_lone);
    }
    *looks = waits.looks;
    return waits.requests;
}

uint64_t aiofs_waiting_trials(void)
{
    return waits.trials;
}

int64_t aiofs_waiting_processor_ns(uint32_t pid)
{
    return waiting_callers.processor_ns(pid);
}

uint32_t aiofs_lumps_limit(const aiofs_look *looks, uint32_t n, uint32_t in_work)
{
    struct lumps lumps = {0};

    for (uint32_t i = 0; i < n; i++) {
        lumps.in_flight = looks[i].in_flight;
        for (uint32_t k = 0; k < looks[i].finished; k++)
            lumps_reaped(&lumps, looks[i].reads);
        lumps_looked(&lumps);
    }
    lumps.in_flight = 0;
    return lumps_room(&lumps, in_work);
}
