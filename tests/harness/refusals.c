/* refusals.c -- see refusals.h. */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kernel.h"
#include "refusals.h"

static atomic_int countdown; /* the call that brings it to 0 fails; 0: none does */
static atomic_uint calls, one_of;
static pthread_t undisturbed; /* the fake kernel's */

/* Shall this call, which needs something, fail? */
static int refuse(void)
{
    int left = atomic_load(&countdown);

    while (left > 0 && !atomic_compare_exchange_weak(&countdown, &left, left - 1))
        ;
    return left == 1;
}

/* Shall this one, which can be tried again? By count and not at random: several threads call. */
static int disturb(void)
{
    unsigned n = atomic_load(&one_of);

    if (!n || pthread_equal(pthread_self(), undisturbed))
        return 0;
    return atomic_fetch_add(&calls, 1) % n == n - 1;
}

void refusals_disturb(unsigned n)
{
    undisturbed = pthread_self();
    atomic_store(&one_of, n);
}

/* A call that needs something: its result when refused, and its errno. */
#define NEEDS(type, name, parameters, arguments, refused, error) \
    type __real_##name parameters;                               \
    type __wrap_##name parameters;                               \
    type __wrap_##name parameters                                \
    {                                                            \
        if (refuse()) {                                          \
            errno = error;                                       \
            return refused;                                      \
        }                                                        \
        return __real_##name arguments;                          \
    }

/* One that can be tried again. */
#define MAY_WAIT(type, name, parameters, arguments, refused, error) \
    type __real_##name parameters;                                  \
    type __wrap_##name parameters;                                  \
    type __wrap_##name parameters                                   \
    {                                                               \
        if (disturb()) {                                            \
            errno = error;                                          \
            return refused;                                         \
        }                                                           \
        return __real_##name arguments;                             \
    }

NEEDS(void *, calloc, (size_t n, size_t size), (n, size), NULL, ENOMEM)
NEEDS(void *, malloc, (size_t size), (size), NULL, ENOMEM)
NEEDS(void *, aligned_alloc, (size_t alignment, size_t size), (alignment, size), NULL, ENOMEM)
NEEDS(void *, realloc, (void *old, size_t size), (old, size), NULL, ENOMEM)
NEEDS(void *, mmap, (void *at, size_t size, int prot, int flags, int fd, off_t offset),
      (at, size, prot, flags, fd, offset), MAP_FAILED, ENOMEM)
NEEDS(int, eventfd, (unsigned initial, int flags), (initial, flags), -1, EMFILE)
NEEDS(int, timerfd_create, (int clock, int flags), (clock, flags), -1, EMFILE)
NEEDS(int, epoll_create1, (int flags), (flags), -1, EMFILE)
NEEDS(int, epoll_ctl, (int epoll, int op, int fd, struct epoll_event *event), (epoll, op, fd, event), -1,
      ENOSPC)
NEEDS(int, pthread_create,
      (pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *argument),
      (thread, attr, start, argument), EAGAIN, EAGAIN)
NEEDS(int, io_setup, (int n, io_context_t *context), (n, context), -EAGAIN, EAGAIN)
NEEDS(int, io_uring_queue_init_params, (unsigned n, struct io_uring *ring, struct io_uring_params *params),
      (n, ring, params), -ENOMEM, ENOMEM)
NEEDS(int, io_uring_register_eventfd, (struct io_uring *ring, int fd), (ring, fd), -ENOMEM, ENOMEM)
NEEDS(int, io_uring_register_files_sparse, (struct io_uring *ring, unsigned n), (ring, n), -ENOMEM, ENOMEM)
NEEDS(int, io_uring_register_files_update, (struct io_uring *ring, unsigned at, const int *fds, unsigned n),
      (ring, at, fds, n), -ENOMEM, ENOMEM)

MAY_WAIT(ssize_t, readv, (int fd, const struct iovec *iov, int n), (fd, iov, n), -1, EINTR)
MAY_WAIT(ssize_t, writev, (int fd, const struct iovec *iov, int n), (fd, iov, n), -1,
         calls % 2 ? EINTR : EAGAIN)
MAY_WAIT(ssize_t, recv, (int fd, void *buffer, size_t size, int flags), (fd, buffer, size, flags), -1, EINTR)
MAY_WAIT(ssize_t, send, (int fd, const void *buffer, size_t size, int flags), (fd, buffer, size, flags), -1,
         calls % 2 ? EINTR : EAGAIN)
MAY_WAIT(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags), -1, EINTR)
MAY_WAIT(ssize_t, preadv, (int fd, const struct iovec *iov, int n, off_t offset), (fd, iov, n, offset), -1,
         EINTR)
MAY_WAIT(ssize_t, pwritev, (int fd, const struct iovec *iov, int n, off_t offset), (fd, iov, n, offset), -1,
         calls % 2 ? EINTR : EAGAIN)
MAY_WAIT(int, fdatasync, (int fd), (fd), -1, EINTR)
MAY_WAIT(int, io_submit, (io_context_t context, long n, struct iocb **iocbs), (context, n, iocbs),
         calls % 2 ? -EINTR : -EAGAIN, EAGAIN)
MAY_WAIT(int, io_uring_submit, (struct io_uring *ring), (ring), calls % 2 ? -EINTR : -EAGAIN, EAGAIN)

/* ---- every call that needs something, refused once ---- */

static void use_queue(const char *driver, int fd)
{
    aiofs_queue *queue;
    unsigned char buffer[512];
    aiofs_io io = {.id = 1, .fd = fd, .length = sizeof buffer, .buffer = buffer}, done;
    int32_t reaped;

    if (aiofs_queue_open(&queue, driver, 4) < 0)
        return;
    if (aiofs_queue_attach(queue, fd) >= 0) {
        if (aiofs_queue_submit(queue, &io, 1) != 1)
            fail("an io was not taken");
        while ((reaped = aiofs_queue_reap(queue, &done, 1, 60000)) != 1)
            if (reaped != -EINTR && reaped != -ENOSPC) /* the epoll in which it waits had none */
                fail("reap: %d", reaped);
        if (done.id != 1 || (done.result != (int64_t)sizeof buffer && done.result != -EAGAIN))
            fail("an io came back with %ld", (long)done.result);
        aiofs_queue_detach(queue, fd);
    }
    if (aiofs_queue_close(queue) != 0)
        fail("a queue with nothing in flight was not closed");
}

static void use_plane(const char *driver, int fd)
{
    static aiofs_image_counters counters;
    aiofs_command command = {.id = 1, .verb = AIOFS_REGISTER, .node = 10, .fd = fd, .tail_fd = -1};
    aiofs_config config = {.queue_depth = 4, .max_images = 2};
    int pairs[3][2];
    aiofs_plane *plane;

    command.block_size = 1;
    command.counters = &counters;
    command.driver = command.wide_driver = aiofs_driver_index(driver);
    for (int i = 0; i < 3; i++)
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pairs[i]) < 0)
            fail("socketpair: %s", strerror(errno));
    config.fuse_fd = pairs[0][1];
    config.forward_fd = pairs[1][1];
    config.control_fd = pairs[2][1];
    if (aiofs_open(&plane, &config) == 0) {
        aiofs_answer answer = {0};

        if (write(pairs[2][0], &command, sizeof command) != sizeof command)
            fail("cannot send a command");
        shutdown(pairs[0][0], SHUT_WR);
        if (aiofs_run(plane) != 0)
            fail("the loop did not see the unmount");
        if (read(pairs[2][0], &answer, sizeof answer) != sizeof answer || answer.id != 1)
            fail("REGISTER was not answered");
        aiofs_close(plane);
    }
    for (int i = 0; i < 3; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
}

void exercise_refusals(const char *directory, const char *driver)
{
    static void (*const uses[])(const char *, int) = {use_queue, use_plane};
    char path[512];
    int fd, left;

    snprintf(path, sizeof path, "%s/refused.img", directory);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 8192) < 0)
        fail("%s: %s", path, strerror(errno));
    unlink(path);
    for (unsigned i = 0; i < sizeof uses / sizeof *uses; i++) {
        int n = 0;

        do {
            atomic_store(&countdown, ++n);
            uses[i](driver, fd);
            left = atomic_exchange(&countdown, 0);
        } while (left == 0);
        if (n < 5)
            fail("only %d calls were refused", n - 1);
    }
    close(fd);
}
