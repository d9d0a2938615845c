/* exercise.c -- random requests to a plane, each checked against a model of every byte.
 *
 * Requests that overlap take effect in the order in which they came, so the model changes when a request is
 * sent, and a READ knows then what it has to bring. What changes a size is sent alone: others would not know
 * where the end is. The order of commands and messages, which come over two sockets, is made certain by
 * kernel_settle.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exercise.h"
#include "faults.h"
#include "model.h"

#define IMAGES 2
#define LENGTH_MAX (1 << 20)

static struct model images[IMAGES];
static unsigned image_count;
static struct kernel kernel;
static unsigned char data[LENGTH_MAX];

static const char *driver_in_use;

static int is_faulty(void)
{
    return strncmp(driver_in_use, "fault:", 6) == 0;
}

static struct model *any_image(void)
{
    return &images[random_below(image_count)];
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Mostly small, often whole blocks, sometimes as long as may be. */
static uint32_t any_length(void)
{
    uint64_t unit = one_in(2) ? 1 : 4096;
    uint64_t most = one_in(20) ? LENGTH_MAX : 3 * 4096;

    return (uint32_t)(unit * (1 + random_below(most / unit)));
}

static int64_t any_offset(int64_t below)
{
    int64_t offset = (int64_t)random_below((uint64_t)below + 1);

    if (one_in(4)) /* at the end things differ */
        offset = below - (int64_t)random_below(9000);
    if (offset < 0)
        offset = 0;
    return one_in(2) ? offset : offset & ~4095;
}

/* ---- requests ---- */

static void send_read(struct model *m, int64_t offset, uint32_t length, int may_fail)
{
    struct fuse_read_in in = {.offset = (uint64_t)offset, .size = length};
    struct expectation *e = kernel_expect(&kernel, FUSE_READ, m->node);

    e->offset = offset;
    e->may_fail = may_fail;
    e->length = (uint32_t)(offset >= m->size ? 0 : smaller(length, m->size - offset));
    e->bytes = malloc(e->length + 1u);
    if (!e->bytes)
        fail("no memory");
    memcpy(e->bytes, m->bytes + smaller(offset, m->size), e->length);
    kernel_send(&kernel, e, &in, sizeof in, NULL, 0);
}

static void send_write(struct model *m, int64_t offset, uint32_t length, int may_fail)
{
    struct fuse_write_in in = {.offset = (uint64_t)offset, .size = length};
    struct expectation *e = kernel_expect(&kernel, FUSE_WRITE, m->node);
    uint64_t salt = random_below(256);

    for (uint32_t i = 0; i < length; i++)
        data[i] = (unsigned char)(i * 7 + salt + (i >> 9));
    e->offset = offset;
    e->length = length;
    e->may_fail = may_fail;
    memcpy(m->bytes + offset, data, length);
    if (m->size < offset + length)
        m->size = offset + length;
    kernel_send(&kernel, e, &in, sizeof in, data, length);
}

static void send_fsync(struct model *m)
{
    struct fuse_fsync_in in = {.fsync_flags = 1};
    struct expectation *e = kernel_expect(&kernel, FUSE_FSYNC, m->node);

    e->error = m->error;
    kernel_send(&kernel, e, &in, sizeof in, NULL, 0);
}

static void do_read(struct model *m)
{
    send_read(m, any_offset(m->size + 9000), any_length(), 0);
}

static void do_write(struct model *m)
{
    int64_t offset = any_offset(m->size);
    uint32_t length = any_length();
    int longer;

    length = (uint32_t)smaller(length, IMAGE_MAX - offset);
    if (!length)
        return;
    if (!one_in(8))
        length = (uint32_t)smaller(length, m->size - offset);
    if (!length)
        return;
    longer = offset + length > m->size;
    if (longer)
        kernel_drain(&kernel);
    send_write(m, offset, length, 0);
    if (longer)
        kernel_drain(&kernel);
}

/* Adjacent ones, sent together: they are merged, where that is on, and where image and direction stay the
 * same. */
static void do_stream(struct model *m)
{
    uint32_t length = one_in(2) ? 4096 : 1000;
    int64_t offset = any_offset(m->size);
    int writes = one_in(2);

    for (unsigned i = 0; i < 12; i++, offset += length) {
        if (one_in(6))
            writes = !writes;
        if (one_in(6))
            m = any_image();
        if (offset + length > m->size)
            break;
        if (writes)
            send_write(m, offset, length, 0);
        else
            send_read(m, offset, length, 0);
    }
}

/* One after the other: each comes alone, and where threads do it, the stand-in answers. */
static void do_alone(struct model *m)
{
    int64_t offset = any_offset(m->size) & ~4095;

    for (unsigned i = 0; i < 10 && offset + 4096 <= m->size; i++) {
        kernel_drain(&kernel);
        if (one_in(3))
            send_read(m, offset, 4096, 0);
        else
            send_write(m, offset, 4096, 0);
        if (one_in(8)) /* not alone any more */
            do_read(any_image());
    }
}

static void do_fallocate(struct model *m)
{
    struct fuse_fallocate_in in = {.length = any_length(), .offset = (uint64_t)any_offset(m->size)};
    int64_t offset = (int64_t)in.offset, end = smaller(offset + (int64_t)in.length, IMAGE_MAX);
    struct expectation *e;
    int longer;

    if (end <= offset)
        return;
    in.length = (uint64_t)(end - offset);
    in.mode = one_in(2) ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
    if (one_in(10))
        in.mode = FALLOC_FL_COLLAPSE_RANGE;
    if (in.mode == FALLOC_FL_ZERO_RANGE && one_in(2))
        in.mode |= FALLOC_FL_KEEP_SIZE;
    if (!(in.mode & FALLOC_FL_ZERO_RANGE ? m->can_zero : m->can_punch))
        return;
    longer = end > m->size && !(in.mode & FALLOC_FL_KEEP_SIZE) && in.mode & FALLOC_FL_ZERO_RANGE;
    if (longer)
        kernel_drain(&kernel);
    e = kernel_expect(&kernel, FUSE_FALLOCATE, m->node);
    e->offset = offset;
    e->error = in.mode & FALLOC_FL_COLLAPSE_RANGE ? -EOPNOTSUPP : 0;
    if (!e->error)
        memset(m->bytes + offset, 0, (size_t)(end - offset));
    if (longer)
        m->size = end;
    kernel_send(&kernel, e, &in, sizeof in, NULL, 0);
    if (longer)
        kernel_drain(&kernel);
}

static void do_lseek(struct model *m)
{
    uint32_t whence = one_in(2) ? SEEK_DATA : SEEK_HOLE;
    struct fuse_lseek_in in = {.offset = (uint64_t)any_offset(m->size), .whence = whence};
    struct expectation *e = kernel_expect(&kernel, FUSE_LSEEK, m->node);

    e->offset = (int64_t)in.offset;
    e->end = m->size;
    e->length = in.whence == SEEK_DATA;
    e->first_data = e->length ? model_first_data(m, e->offset) : e->offset < m->size ? e->offset : -1;
    kernel_send(&kernel, e, &in, sizeof in, NULL, 0);
}

/* ---- commands ---- */

/* While requests are in work before it, and with others behind it. */
static void do_truncate(struct model *m)
{
    int64_t size = any_offset(IMAGE_MAX);
    uint64_t id;

    kernel_settle(&kernel);
    id = kernel_order(&kernel, (aiofs_command){.verb = AIOFS_TRUNCATE, .node = m->node, .size = size});
    /* Commands are taken in order: once this one is answered, the other has its place in the line. */
    if (kernel_command(&kernel, (aiofs_command){.verb = AIOFS_OPEN_DRIVER, .driver = m->driver}) != 0)
        fail("OPEN_DRIVER failed");
    if (size < m->size)
        memset(m->bytes + size, 0, (size_t)(m->size - size));
    m->size = size;
    for (unsigned i = 0; i < 3; i++)
        do_read(m);
    if (kernel_answer(&kernel, id) != 0)
        fail("TRUNCATE to %ld failed", (long)size);
}

static void do_register_again(struct model *m)
{
    struct fuse_write_in in = {.size = 1};
    struct expectation *e;

    kernel_settle(&kernel);
    model_unregister(m, &kernel);
    e = kernel_expect(&kernel, FUSE_WRITE, m->node);
    e->error = -EBADF;
    kernel_send(&kernel, e, &in, sizeof in, "x", 1);
    kernel_drain(&kernel);
    m->error = 0;
    m->flags = one_in(3) ? AIOFS_IMAGE_WRITES_BY_THREADS : 0;
    m->has_wide_driver = one_in(3);
    m->wide_driver = aiofs_driver_index(is_faulty() ? "fault:threads" : "threads");
    model_register(m, &kernel, m->driver);
}

static void do_wrong_command(struct model *m)
{
    static const struct {
        aiofs_command command;
        int64_t answer;
    } wrong[] = {
        {{.verb = 0}, -EINVAL},
        {{.verb = 99}, -EINVAL},
        {{.verb = AIOFS_REGISTER, .node = 5, .fd = -1, .block_size = 1}, -EINVAL},
        {{.verb = AIOFS_REGISTER, .node = 5, .fd = 0, .block_size = 3}, -EINVAL},
        {{.verb = AIOFS_UNREGISTER, .node = 12345}, -ENOENT},
        {{.verb = AIOFS_TRUNCATE, .node = 12345, .size = 1}, -ENOENT},
        {{.verb = AIOFS_OPEN_DRIVER, .driver = -1}, -EINVAL},
        {{.verb = AIOFS_OPEN_DRIVER, .driver = 1000}, -EINVAL},
    };
    unsigned i = (unsigned)random_below(sizeof wrong / sizeof *wrong);
    int64_t answer = kernel_command(&kernel, wrong[i].command);
    aiofs_command negative = {.verb = AIOFS_TRUNCATE, .node = m->node, .size = -1};

    if (answer != wrong[i].answer)
        fail("wrong command %u: %ld", i, (long)answer);
    if (kernel_command(&kernel, negative) != -EINVAL)
        fail("TRUNCATE to -1 was taken");
    if (send(kernel.control, "short", 5, MSG_NOSIGNAL) != 5)
        fail("cannot send a short command");
}

/* ---- what is not as it should be ---- */

static void do_malformed(struct model *m)
{
    static const uint32_t opcodes[] = {FUSE_READ, FUSE_WRITE, FUSE_FSYNC, FUSE_FALLOCATE, FUSE_LSEEK};
    unsigned char body[256] = {0};
    uint32_t opcode = opcodes[random_below(5)];
    struct expectation *e;

    if (one_in(3)) { /* less than a header: nobody to answer */
        kernel_send_raw(&kernel, body, 1 + random_below(sizeof(struct fuse_in_header) - 1));
        return;
    }
    e = kernel_expect(&kernel, opcode, m->node);
    e->error = -EINVAL;
    if (opcode == FUSE_WRITE && one_in(2)) { /* less data than it says */
        struct fuse_write_in in = {.size = 5000};

        kernel_send(&kernel, e, &in, sizeof in, data, 4999);
    } else if (one_in(2)) { /* cut short */
        kernel_send(&kernel, e, body, random_below(16), NULL, 0);
    } else if (opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FALLOCATE) {
        memset(body, 0xff, sizeof body); /* numbers that no file has */
        kernel_send(&kernel, e, body, 40 + random_below(200), NULL, 0);
    } else { /* a length that lies */
        struct fuse_in_header header = {
            .len = 1000, .opcode = opcode, .unique = e->unique, .nodeid = m->node};

        memcpy(body, &header, sizeof header);
        kernel_send_raw(&kernel, body, 100);
    }
}

/* For the control plane. */
static void do_other(struct model *m)
{
    static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_OPEN, FUSE_CREATE, FUSE_SETXATTR};
    struct fuse_in_header header = {.opcode = FUSE_BATCH_FORGET, .nodeid = 0};
    struct fuse_batch_forget_in batch;

    (void)m;
    if (!one_in(4)) {
        struct expectation *e = kernel_expect(&kernel, opcodes[random_below(5)], FUSE_ROOT_ID);

        kernel_send(&kernel, e, data, random_below(20000), NULL, 0);
        return;
    }
    batch = (struct fuse_batch_forget_in){.count = (uint32_t)random_below(5000)};
    header.len = (uint32_t)(sizeof header + sizeof batch + batch.count * sizeof(struct fuse_forget_one));
    memset(data, 0, header.len);
    memcpy(data, &header, sizeof header);
    memcpy(data + sizeof header, &batch, sizeof batch);
    kernel_send_raw(&kernel, data, header.len);
    if (one_in(2)) { /* an interrupt, and one forget more than there are */
        header = (struct fuse_in_header){.len = sizeof header + 8, .opcode = FUSE_INTERRUPT, .unique = 1};
        memcpy(data, &header, sizeof header);
        kernel_send_raw(&kernel, data, header.len);
    }
}

/* The counters, while the loop counts: plain stores of the loop's thread, each of a whole word, which Python
 * reads at any time (api.h). This is the stand-in for Python, so the thread sanitizer is to look away;
 * nothing else reads them. */
__attribute__((noinline, no_sanitize("thread"))) static uint64_t read_counters(const struct model *m)
{
    return m->counters.requests_read + m->counters.in_flight + aiofs_counters(kernel.plane)->requests;
}

/* ---- faults ---- */

static void reload(const struct expectation *e)
{
    for (unsigned i = 0; i < image_count; i++)
        if (images[i].node == e->node && e->opcode == FUSE_WRITE)
            model_reload(&images[i], e->offset, e->length);
}

/* Errors that callers do notice: alone, so that it is known whose. */
static void do_fault(struct model *m)
{
    if (!is_faulty())
        return;
    if (!one_in(4)) {
        faults_disturb();
        return;
    }
    kernel_drain(&kernel);
    faults_forget();
    if (one_in(10)) {
        faults_add(AIOFS_FAULT_ERROR, 2, -EIO, 1);
        m->error = m->flags & AIOFS_IMAGE_NO_FSYNC ? 0 : -EIO;
        send_fsync(m);
    } else if (m->size >= 8 * 4096) {
        int write = one_in(2);

        faults_add(AIOFS_FAULT_ERROR, (uint64_t)write, -EIO, 1);
        if (one_in(2))
            faults_add(AIOFS_FAULT_ERROR, 0, -EIO, 1); /* the edges of an unaligned WRITE, or another READ */
        for (unsigned i = 0; i < 4; i++)
            if (write)
                send_write(m, i * 2 * 4096 + 100, 4096, 1);
            else
                send_read(m, i * 4096, 4096, 1);
    }
    kernel_drain(&kernel);
    faults_forget();
}

/* ---- a run ---- */

static void do_one(struct model *m)
{
    static void (*const operations[])(struct model *) = {
        do_read,   do_read,     do_read,      do_read,     do_write, do_write, do_write,          do_write,
        do_stream, do_stream,   do_fallocate, do_lseek,    do_other, do_fault, do_wrong_command, do_malformed,
        do_truncate, send_fsync, do_register_again, do_stream, do_alone, do_alone,
    };

    operations[random_below(sizeof operations / sizeof *operations)](m);
    if (one_in(30))
        (void)read_counters(m);
    if (one_in(50))
        kernel_drain(&kernel);
    else
        kernel_poll(&kernel, 0);
}

/* End it with requests on their way. What was read is done and answered; of the rest the file knows nothing.
 * Messages are read in order, so what was answered is what was sent first. */
static void end(int by_unmount)
{
    struct model *m = &images[0];
    unsigned char *before;
    unsigned last = 0;

    kernel_drain(&kernel);
    before = malloc((size_t)m->size + 1);
    memcpy(before, m->bytes, (size_t)m->size);
    for (unsigned i = 0; i < 16 && m->size >= 4096; i++)
        send_write(m, 0, 4096, 0);
    if (by_unmount)
        shutdown(kernel.fuse, SHUT_WR);
    else
        aiofs_stop(kernel.plane);
    kernel_join(&kernel);
    if (kernel.result != !by_unmount)
        fail("the loop returned %d", kernel.result);
    for (unsigned i = 0; i < OUTSTANDING_MAX; i++)
        last += kernel.expected[i].unique != 0;
    if (by_unmount && last)
        fail("%u requests were read before the unmount and not answered", last);
    if (last == 16) /* none was read */
        memcpy(m->bytes, before, (size_t)m->size);
    else if (last) /* 16 - last were, and each wrote the same range: the file has the last of them */
        model_reload(m, 0, 4096);
    free(before);
}

void exercise_plane(const char *directory, const char *driver, unsigned operations)
{
    int32_t index = aiofs_driver_index(driver);

    driver_in_use = driver;
    faults_none();
    kernel_open(&kernel, 4 + (unsigned)random_below(28), !one_in(4), one_in(2) ? 100 : 0);
    kernel.failed = reload;
    image_count = 0;
    for (int direct = 0; direct < IMAGES; direct++)
        if (model_open(&images[image_count], directory, 10 + (unsigned)direct, direct, 200000))
            model_register(&images[image_count++], &kernel, index);
        else
            printf("%s: no O_DIRECT in %s: buffered images only\n", driver, directory);
    for (unsigned i = 0; i < operations; i++)
        do_one(any_image());
    kernel_drain(&kernel);
    faults_forget();
    end(one_in(2));
    kernel_close(&kernel);
    for (unsigned i = 0; i < image_count; i++) {
        model_check(&images[i]);
        model_close(&images[i]);
    }
}
