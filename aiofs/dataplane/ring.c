/* ring.c -- see ring.h. */
#include <errno.h>

#include "ring.h"

/* Newest first; each step is what the kernel before that had. */
static const unsigned setup_flags[] = {
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
        IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,                        /* 6.1 */
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
    0,
};

int ring_open(struct io_uring *ring, unsigned entries)
{
    int error = -EINVAL;
    for (size_t i = 0; error == -EINVAL && i < sizeof setup_flags / sizeof *setup_flags; i++) {
        struct io_uring_params params = {.flags = setup_flags[i]};
        error = io_uring_queue_init_params(entries, ring, &params);
    }
    return error;
}

int ring_warm(struct io_uring *ring, unsigned count, bool with_worker)
{
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    for (unsigned i = 0; i < count && (sqe = io_uring_get_sqe(ring)) != NULL; i++) {
        io_uring_prep_nop(sqe);
        if (i == 0 && with_worker)
            io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    }
    int submitted = io_uring_submit(ring);
    ring_drop_rest(ring);
    while (submitted > 0) {
        int error = io_uring_wait_cqe(ring, &cqe);
        if (error < 0 && error != -EINTR && error != -EAGAIN && error != -EBUSY)
            return error;
        if (error == 0) {
            io_uring_cqe_seen(ring, cqe);
            submitted--;
        }
    }
    return 0;
}

void ring_drop_rest(struct io_uring *ring)
{
    struct io_uring_sq *sq = &ring->sq;
    unsigned head = __atomic_load_n(sq->khead, __ATOMIC_ACQUIRE);
    sq->sqe_head = sq->sqe_tail = head;
    __atomic_store_n(sq->ktail, head, __ATOMIC_RELEASE);
}
