/* waiting.h -- how the loop waits when it has nothing to do: asleep, or looking for work a little longer.
 *
 * To sleep and be woken costs 5-50 us, at low depth much of a request's round trip. To look costs a core (two, where vigil.h
 * has work), and drives the caller off it: a process whose server sleeps is brought to the server's core by the kernel's load balancer
 * within 0.1-0.2 s, and from then on needs no interrupt between cores. Some callers share no core: a loop device's
 * requests come from kernel workers, wherever those run, and a process may keep one busy while it waits for us (an
 * emulated guest, whoever polls). There looking wins. And a process that asks for one at a time gains by it from its first
 * requests on, while the balancer has done nothing yet. So the first choice goes by who asks, and how. Other machines, and
 * storage as fast as memory, are otherwise: now and then the other manner is tried,
 * looking for 8 ms where a device is waited for, and 0.15 s more where that leaves it open, anything else for 0.35 s, and
 * stays when it is faster. README.md has figures.
 *
 * What is waited until the next trial is work: who works a moment at a time, and rests between, would else meet a trial, which is
 * mostly of what is slower, in each of them.
 *
 * A mount that is idle, or on a device slow enough for sleeping not to matter, never looks and tries nothing.
 *
 * Threads: the loop's. States: quiet -> holding -> settling -> trial -> holding, where it gained something, or
 * returning -> review -> holding, in which what was tried may turn out better than what there is now; any -> quiet. A trial of
 * 8 ms comes right after holding; where it leaves it open, trial -> settling -> trial.
 */
#ifndef AIOFS_WAITING_H
#define AIOFS_WAITING_H

#include <stdint.h>

/* What is asked about who sent a request, by its `pid`: a thread's id, 0 when the kernel knows none. */
struct waiting_callers {
    int (*is_kernel_thread)(uint32_t pid);
    /* Processor time that the process has used, ns; 0: unknown. */
    int64_t (*processor_ns)(uint32_t pid);
};
extern const struct waiting_callers waiting_callers; /* this machine's */

struct waiting {
    int64_t limit_ns; /* the longest look; 0: never look */
    int64_t wait_ns;  /* moving average of how long waits lasted */
    enum { WAITING_QUIET, WAITING_HOLDING, WAITING_SETTLING, WAITING_TRIAL, WAITING_RETURNING, WAITING_REVIEW } state;
    int looks;        /* the manner in force */
    int on_device;    /* there were waits for I/O in this window, not for callers only */
    int is_short;     /* of the trial: it has no settling, and is over soon */
    int64_t settle_ns; /* of a trial that has one: how long it lasts */
    int has_caller;   /* somebody has asked, */
    int keeps_core;   /* and when the manner was chosen it was one that shares no core with us */
    int looks_first;  /* and the choice was to look */
    int lone_share;   /* moving average of 0 and LONE_ALL, over waits for I/O: of one lone request, which the kernel does */
    int is_lone;      /* most were */
    struct {
        int is_busy;  /* who was measured last kept a core busy */
        uint32_t pid; /* who is measured, */
        int64_t at_ns, processor_ns; /* since then, when it had used so much */
    } process;
    int64_t start_ns; /* of this window */
    uint64_t start_requests;
    int64_t pace_ns;  /* time a request: before the trial, in the last window; after it, in that of the trial */
    int64_t hold_ns, held_ns; /* how long the manner is to be held, and was: of work, idle times do not count */
    const struct waiting_callers *callers;
    uint64_t *trials; /* counted up */
};

/* Looks last no longer than `limit_ns`; 0: never look. */
void waiting_init(struct waiting *waiting, int64_t limit_ns, const struct waiting_callers *callers, uint64_t *trials);
/* Before a wait: is it to begin with a look? There have been `requests`, the last of thread `pid`. */
int waiting_looks(struct waiting *waiting, int64_t now_ns, uint64_t requests, uint32_t pid);
/* Will the next wait begin asleep, as far as can be told now? */
int waiting_sleeps(const struct waiting *waiting);
/* After it: how long it was, whether I/O was waited for, too, and whether that was all there was: one request, which had come
 * alone, and whose I/O is not in a thread of ours. */
void waiting_note(struct waiting *waiting, int64_t ns, int on_device, int is_lone);

#endif
