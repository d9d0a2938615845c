/* naps.h -- short sleeps made cheap: while work goes out, a timer is due soon.
 *
 * A core with nothing to run stops its scheduler tick and starts it again when it has something, and each time it sets its
 * timer anew. In a virtual machine that is a call of the hypervisor: 2-3 us, twice for each wait for a device that takes 50. It
 * does not set what stays as it is, and that is when the timer that is due next is another one than the tick.
 *
 * So there is a timer that nobody waits for, on the core where the plane's thread works. It is set again before it is due, as
 * long as batches follow each other closely. When they no longer do, it is due once, which wakes nobody, and that is all.
 *
 * Threads: the one that has the plane's turn (stand_in.h).
 */
#ifndef AIOFS_NAPS_H
#define AIOFS_NAPS_H

#include <stdint.h>

struct naps {
    int timer_fd; /* -1: none, and sleeps cost what they cost */
    int64_t set_ns, batch_ns; /* when the timer was set, when the last batch went out */
};

void naps_open(struct naps *naps);
void naps_close(struct naps *naps);
/* A batch goes out. */
void naps_expect(struct naps *naps, int64_t now_ns);

#endif
