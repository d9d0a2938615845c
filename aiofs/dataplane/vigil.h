/* vigil.h -- keeps the caller's core awake, while the loop looks for work on another one.
 *
 * A core with nothing to run halts. In a virtual machine that is a call of the hypervisor, and to wake it is another: 40 us and
 * more were seen. A caller who waits for one request at a time has its core halt each time, and whatever the loop gains by
 * looking is lost when it answers. So there is a thread that runs on that core when nobody else wants to: as SCHED_IDLE, which
 * gives way to whatever is woken there at once, and counts as idle for those who choose a core.
 *
 * It ends when the loop has not looked for a moment, and does nothing where loop and caller share a core. Which core is the
 * caller's it asks /proc, which may wait for memory, as the loop must not.
 *
 * Threads: vigil_keep is the loop's; the rest of the work is the thread's own.
 * States: asleep -> (the loop looks) awake -> asleep.
 */
#ifndef AIOFS_VIGIL_H
#define AIOFS_VIGIL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>

struct vigil {
    pthread_t thread;
    int exists;
    sem_t begins;             /* posted when `is_awake` has been set, or `ends` */
    atomic_int is_awake, ends;
    _Atomic int64_t until_ns; /* of clock_ns() */
    atomic_int loop_core;
    _Atomic uint32_t pid;     /* of the caller: a thread's */
};

/* Without memory for a thread there is none, and cores halt. */
void vigil_start(struct vigil *vigil);
void vigil_stop(struct vigil *vigil);

/* The loop looks for work, and who asks last is thread `pid`; 0: the kernel knows none. */
void vigil_keep(struct vigil *vigil, int64_t now_ns, uint32_t pid);

#endif
