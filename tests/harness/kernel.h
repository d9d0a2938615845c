/* kernel.h -- a fake kernel and a fake control plane around one data plane, without Python.
 *
 * What tests/plane/fakekernel.py is to pytest, this is to the sanitizers: it sends FUSE messages and
 * commands, knows what has to come back for each, and ends the process with a line on stderr when something
 * else does.
 *
 * Threads: the caller's, and the loop's, which runs nothing but aiofs_run.
 */
#ifndef HARNESS_KERNEL_H
#define HARNESS_KERNEL_H

#include <linux/fuse.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "contract.h"

#define OUTSTANDING_MAX 24

/* Print where the run was (driver, seed, operation) and why it ends; status 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- random numbers: a seed gives the same ones everywhere ---- */

void random_seed(uint64_t seed);
uint64_t random_below(uint64_t limit); /* 0 .. limit - 1; limit > 0 */
int one_in(unsigned n);

/* ---- the kernel ---- */

/* What the answer to a message has to be. */
struct expectation {
    uint64_t unique; /* 0: free */
    uint32_t opcode;
    uint64_t node;
    int64_t offset;
    uint32_t length;
    int error;            /* it must be this one (-errno), and 0 success */
    int may_fail;         /* -EIO is as good */
    unsigned char *bytes; /* READ: `length` bytes that must come; ours */
    int64_t first_data;   /* LSEEK: from offset up to here all bytes are 0; -1: up to the end */
    int64_t end;          /* LSEEK: the size */
};

struct kernel {
    int fuse, forward, control; /* our ends */
    int ends[3];                /* the plane's */
    aiofs_plane *plane;
    pthread_t thread;
    int result; /* of aiofs_run */
    uint64_t next_unique, next_id;
    struct expectation expected[OUTSTANDING_MAX];
    unsigned outstanding;
    aiofs_answer answers[8]; /* to commands, the newest; by id */
    unsigned char *buffer;
    /* Called for each message that failed and might; of a WRITE the model takes what the file has. */
    void (*failed)(const struct expectation *e);
};

/* A plane, running, after an exchange of INIT. */
void kernel_open(struct kernel *k, unsigned depth, unsigned merge, unsigned look_us);
/* After the loop has ended. */
void kernel_close(struct kernel *k);
void kernel_join(struct kernel *k);

/* An expectation for a message to be sent next; waits while too many are outstanding. */
struct expectation *kernel_expect(struct kernel *k, uint32_t opcode, uint64_t node);
/* Send its message: the header, and body[0..size) and data[0..data_size) behind it. */
void kernel_send(struct kernel *k, struct expectation *e, const void *body, size_t size, const void *data,
                 size_t data_size);
/* Send bytes as they are. */
void kernel_send_raw(struct kernel *k, const void *bytes, size_t size);

/* Handle what has come; wait for the first of it up to a minute when `wait`. Returns how much. */
int kernel_poll(struct kernel *k, int wait);
/* Until nothing is outstanding. */
void kernel_drain(struct kernel *k);
/* Until the plane has read all that was sent so far. */
void kernel_settle(struct kernel *k);

/* Send a command; its id. */
uint64_t kernel_order(struct kernel *k, aiofs_command command);
/* Send a command and wait for its answer. */
int64_t kernel_command(struct kernel *k, aiofs_command command);
/* Wait for the answer to a command that was ordered, one of the last 8. */
int64_t kernel_answer(struct kernel *k, uint64_t id);

#endif
