/* kernel.c -- see kernel.h. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "kernel.h"

#define MESSAGE_MAX ((1u << 20) + 65536)
#define PATIENCE_MS 60000 /* for an answer that has to come, under valgrind on a busy machine */
#define ANSWERS (sizeof((struct kernel *)0)->answers / sizeof(aiofs_answer))
#define NO_IMAGE 999999u

_Noreturn void fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("harness: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

/* ---- random numbers: xorshift64* ---- */

static uint64_t state = 1;

void random_seed(uint64_t seed)
{
    state = seed * 0x9E3779B97F4A7C15u | 1;
}

uint64_t random_below(uint64_t limit)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1Du >> 11) % limit;
}

int one_in(unsigned n)
{
    return random_below(n) == 0;
}

/* ---- answers ---- */

static void check_lseek(const struct expectation *e, int error, const void *body, size_t size)
{
    struct fuse_lseek_out out;

    if (error == -ENXIO && e->first_data < 0)
        return; /* there was nothing but zeros, and they may be a hole */
    if (error || size != sizeof out)
        fail("LSEEK from %ld: error %d, %zu bytes", (long)e->offset, error, size);
    memcpy(&out, body, sizeof out);
    if ((int64_t)out.offset < e->offset || (int64_t)out.offset > e->end)
        fail("LSEEK from %ld found %ld, of %ld", (long)e->offset, (long)out.offset, (long)e->end);
    if (e->length && e->first_data >= 0 && (int64_t)out.offset > e->first_data) /* SEEK_DATA */
        fail("LSEEK from %ld overlooked data at %ld", (long)e->offset, (long)e->first_data);
}

static void check_success(const struct expectation *e, const void *body, size_t size)
{
    struct fuse_write_out out;

    switch (e->opcode) {
    case FUSE_READ:
        if (size != e->length)
            fail("READ at %ld: %zu bytes instead of %u", (long)e->offset, size, e->length);
        for (size_t i = 0; i < size; i++)
            if (((const unsigned char *)body)[i] != e->bytes[i])
                fail("READ at %ld: byte %ld is not as written", (long)e->offset, (long)e->offset + (long)i);
        break;
    case FUSE_WRITE:
        memcpy(&out, body, size < sizeof out ? size : sizeof out);
        if (size != sizeof out || out.size != e->length)
            fail("WRITE at %ld: not answered with its length", (long)e->offset);
        break;
    case FUSE_FSYNC:
    case FUSE_FALLOCATE:
        if (size)
            fail("opcode %u: %zu bytes in the answer", e->opcode, size);
        break;
    default: /* the fake control plane's own */
        break;
    }
}

static void check(struct kernel *k, const struct expectation *e, int error, const void *body, size_t size)
{
    if (e->may_fail && error == -EIO)
        k->failed(e);
    else if (e->opcode == FUSE_LSEEK && !e->error)
        check_lseek(e, error, body, size);
    else if (error != e->error)
        fail("opcode %u of node %lu at %ld+%u: error %d instead of %d", e->opcode, (unsigned long)e->node,
             (long)e->offset, e->length, error, e->error);
    else if (!error)
        check_success(e, body, size);
}

static void take_reply(struct kernel *k, const unsigned char *reply, size_t size)
{
    struct fuse_out_header header;

    memcpy(&header, reply, size < sizeof header ? size : sizeof header);
    if (size < sizeof header || header.len != size)
        fail("a reply of %zu bytes says that it has %u", size, header.len);
    for (unsigned i = 0; i < OUTSTANDING_MAX; i++) {
        struct expectation *e = &k->expected[i];

        if (e->unique != header.unique || !e->unique)
            continue;
        check(k, e, header.error, reply + sizeof header, size - sizeof header);
        free(e->bytes);
        *e = (struct expectation){0};
        k->outstanding--;
        return;
    }
    fail("a reply to message %lu, which waits for none", (unsigned long)header.unique);
}

/* ---- the control plane's side ---- */

static void reply_down(struct kernel *k, uint64_t unique, const void *body, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .unique = unique};
    struct iovec iov[2] = {{&header, sizeof header}, {(void *)(uintptr_t)body, size}};

    if (writev(k->forward, iov, 2) < 0)
        fail("cannot answer as the control plane: %s", strerror(errno));
}

static void serve_forward(struct kernel *k, const unsigned char *message, size_t size)
{
    struct fuse_in_header header;
    struct fuse_init_out init = {.major = 7, .minor = 38, .max_write = 4096};
    struct fuse_attr_out other = {0};

    if (size < sizeof header)
        fail("%zu bytes passed up", size);
    memcpy(&header, message, sizeof header);
    if (header.len != size)
        fail("a message of %zu bytes passed up that says %u", size, header.len);
    if (header.opcode == FUSE_INIT)
        reply_down(k, header.unique, &init, sizeof init);
    else if (header.opcode != FUSE_FORGET && header.opcode != FUSE_BATCH_FORGET)
        reply_down(k, header.unique, &other, sizeof other);
}

/* ---- the wait ---- */

static ssize_t receive(int fd, void *buffer)
{
    ssize_t size = recv(fd, buffer, MESSAGE_MAX, MSG_DONTWAIT);

    return size < 0 && errno != EAGAIN && errno != ECONNRESET ? -errno : size;
}

/* The order matters: an answer to UNREGISTER comes after the replies, so those are taken last. */
static int take_all(struct kernel *k)
{
    aiofs_answer answer;
    ssize_t size;
    int n = 0;

    while (recv(k->control, &answer, sizeof answer, MSG_DONTWAIT) == sizeof answer) {
        k->answers[answer.id % ANSWERS] = answer;
        n++;
    }
    while ((size = receive(k->forward, k->buffer)) > 0) {
        serve_forward(k, k->buffer, (size_t)size);
        n++;
    }
    while ((size = receive(k->fuse, k->buffer)) > 0) {
        take_reply(k, k->buffer, (size_t)size);
        n++;
    }
    return n;
}

int kernel_poll(struct kernel *k, int wait)
{
    struct pollfd fds[3] = {{k->fuse, POLLIN, 0}, {k->forward, POLLIN, 0}, {k->control, POLLIN, 0}};
    int n = take_all(k);

    if (n || !wait)
        return n;
    if (poll(fds, 3, PATIENCE_MS) == 0)
        fail("no answer within %d s; %u messages wait for one", PATIENCE_MS / 1000, k->outstanding);
    return take_all(k);
}

void kernel_drain(struct kernel *k)
{
    while (k->outstanding)
        kernel_poll(k, 1);
}

void kernel_settle(struct kernel *k)
{
    struct fuse_write_in body = {.size = 1};
    struct expectation *e = kernel_expect(k, FUSE_WRITE, NO_IMAGE);
    uint64_t unique = e->unique;

    e->error = -EBADF;
    kernel_send(k, e, &body, sizeof body, "x", 1);
    while (e->unique == unique)
        kernel_poll(k, 1);
}

/* ---- messages and commands ---- */

struct expectation *kernel_expect(struct kernel *k, uint32_t opcode, uint64_t node)
{
    struct expectation *e = k->expected;
    uint64_t resent = 0;

    while (k->outstanding == OUTSTANDING_MAX)
        kernel_poll(k, 1);
    while (e->unique)
        e++;
    k->next_unique += 2;
    if (one_in(8)) /* one that the kernel sends again, as after the death of a server */
        resent = 1ull << 63;
    *e = (struct expectation){.unique = k->next_unique | resent, .opcode = opcode, .node = node};
    k->outstanding++;
    return e;
}

static void send_all(struct kernel *k, const struct iovec *iov, size_t count)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = count};

    while (sendmsg(k->fuse, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        struct pollfd writable = {k->fuse, POLLIN | POLLOUT, 0};

        if (errno != EAGAIN && errno != ENOBUFS)
            fail("cannot send a message: %s", strerror(errno));
        kernel_poll(k, 0);
        (void)poll(&writable, 1, 100);
    }
}

void kernel_send(struct kernel *k, struct expectation *e, const void *body, size_t size, const void *data,
                 size_t data_size)
{
    struct fuse_in_header header = {
        .len = (uint32_t)(sizeof header + size + data_size),
        .opcode = e->opcode,
        .unique = e->unique,
        .nodeid = e->node,
    };
    struct iovec iov[3] = {
        {&header, sizeof header}, {(void *)(uintptr_t)body, size}, {(void *)(uintptr_t)data, data_size}};

    send_all(k, iov, 3);
}

void kernel_send_raw(struct kernel *k, const void *bytes, size_t size)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, size};

    send_all(k, &iov, 1);
}

uint64_t kernel_order(struct kernel *k, aiofs_command command)
{
    command.id = ++k->next_id;
    if (send(k->control, &command, sizeof command, MSG_NOSIGNAL) < 0)
        fail("cannot send a command: %s", strerror(errno));
    return command.id;
}

int64_t kernel_answer(struct kernel *k, uint64_t id)
{
    while (k->answers[id % ANSWERS].id != id)
        kernel_poll(k, 1);
    return k->answers[id % ANSWERS].result;
}

int64_t kernel_command(struct kernel *k, aiofs_command command)
{
    return kernel_answer(k, kernel_order(k, command));
}

/* ---- open and close ---- */

static void *run(void *argument)
{
    struct kernel *k = argument;

    k->result = aiofs_run(k->plane);
    return NULL;
}

static void pair(int *ours, int *theirs)
{
    int ends[2], size = 8 << 20;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        fail("socketpair: %s", strerror(errno));
    for (int i = 0; i < 2; i++) /* a message of 1 MiB has to fit; only root may have it so */
        if (setsockopt(ends[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
            fail("a socket buffer of 8 MiB: %s (run it as root)", strerror(errno));
    *ours = ends[0];
    *theirs = ends[1];
}

void kernel_open(struct kernel *k, unsigned depth, unsigned merge, unsigned look_us)
{
    aiofs_config config = {.queue_depth = depth, .max_images = 8, .merge = merge, .look_us = look_us};
    struct fuse_init_in init = {.major = 7, .minor = 45, .flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ};
    int error;

    *k = (struct kernel){.next_unique = 2};
    k->buffer = malloc(MESSAGE_MAX);
    pair(&k->fuse, &k->ends[0]);
    pair(&k->forward, &k->ends[1]);
    pair(&k->control, &k->ends[2]);
    config.fuse_fd = k->ends[0];
    config.forward_fd = k->ends[1];
    config.control_fd = k->ends[2];
    error = aiofs_open(&k->plane, &config);
    if (error || !k->buffer || pthread_create(&k->thread, NULL, run, k))
        fail("aiofs_open: error %d", error);
    kernel_send(k, kernel_expect(k, FUSE_INIT, 0), &init, sizeof init, NULL, 0);
    kernel_drain(k);
}

void kernel_join(struct kernel *k)
{
    pthread_join(k->thread, NULL);
    take_all(k);
}

void kernel_close(struct kernel *k)
{
    aiofs_close(k->plane);
    for (unsigned i = 0; i < OUTSTANDING_MAX; i++)
        free(k->expected[i].bytes);
    for (int i = 0; i < 3; i++)
        close(k->ends[i]);
    close(k->fuse);
    close(k->forward);
    close(k->control);
    free(k->buffer);
}
