/* model.c -- see model.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

static int can(int fd, int mode)
{
    return fallocate(fd, mode, 0, 4096) == 0;
}

int model_open(struct model *m, const char *directory, uint64_t node, int direct, int64_t size)
{
    int fd;

    *m = (struct model){.node = node, .direct = direct, .block = direct ? 4096 : 1, .fd = -1, .tail_fd = -1};
    snprintf(m->path, sizeof m->path, "%s/%lu.img", directory, (unsigned long)node);
    fd = open(m->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | (direct ? O_DIRECT : 0), 0600);
    if (fd < 0 && direct && errno == EINVAL) {
        unlink(m->path);
        return 0;
    }
    m->bytes = calloc(1, IMAGE_MAX);
    if (fd < 0 || !m->bytes)
        fail("%s: %s", m->path, strerror(errno));
    m->can_punch = can(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    m->can_zero = can(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
    close(fd);
    m->size = size;
    for (int64_t i = 0; i < size; i++)
        m->bytes[i] = (unsigned char)random_below(256);
    fd = open(m->path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0 || write(fd, m->bytes, (size_t)size) != size)
        fail("%s: %s", m->path, strerror(errno));
    close(fd);
    return 1;
}

void model_close(struct model *m)
{
    if (m->fd >= 0)
        close(m->fd);
    if (m->tail_fd >= 0)
        close(m->tail_fd);
    unlink(m->path);
    free(m->bytes);
}

void model_register(struct model *m, struct kernel *k, int32_t driver)
{
    aiofs_command command = {
        .verb = AIOFS_REGISTER,
        .node = m->node,
        .driver = driver,
        .wide_driver = m->has_wide_driver ? m->wide_driver : driver,
        .flags = m->flags | (m->direct ? AIOFS_IMAGE_DIRECT : 0),
        .block_size = m->block,
        .error = m->error,
        .counters = &m->counters,
    };
    int64_t result;

    m->driver = driver;
    m->fd = open(m->path, O_RDWR | O_CLOEXEC | (m->direct ? O_DIRECT : 0));
    m->tail_fd = m->direct ? open(m->path, O_RDWR | O_CLOEXEC | O_DSYNC) : -1;
    command.fd = m->fd;
    command.tail_fd = m->tail_fd;
    result = kernel_command(k, command);
    if (result < 0)
        fail("REGISTER of node %lu: %ld", (unsigned long)m->node, (long)result);
}

void model_unregister(struct model *m, struct kernel *k)
{
    int64_t result = kernel_command(k, (aiofs_command){.verb = AIOFS_UNREGISTER, .node = m->node});

    if (result != -m->error)
        fail("UNREGISTER of node %lu: %ld instead of %d", (unsigned long)m->node, (long)result, -m->error);
    kernel_poll(k, 0);
    for (unsigned i = 0; i < OUTSTANDING_MAX; i++)
        if (k->expected[i].unique && k->expected[i].node == m->node)
            fail("UNREGISTER was answered before opcode %u at %ld", k->expected[i].opcode,
                 (long)k->expected[i].offset);
    close(m->fd);
    if (m->tail_fd >= 0)
        close(m->tail_fd);
    m->fd = m->tail_fd = -1;
}

static void read_file(const struct model *m, unsigned char *out, int64_t offset, int64_t length)
{
    int fd = open(m->path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : pread(fd, out, (size_t)length, offset);

    if (got != length)
        fail("%s: %zd bytes at %ld instead of %ld", m->path, got, (long)offset, (long)length);
    close(fd);
}

void model_reload(struct model *m, int64_t offset, int64_t length)
{
    read_file(m, m->bytes + offset, offset, length);
}

void model_check(const struct model *m)
{
    unsigned char *found = malloc((size_t)m->size + 1);
    int fd = open(m->path, O_RDONLY | O_CLOEXEC);

    if (!found || fd < 0 || lseek(fd, 0, SEEK_END) != m->size)
        fail("%s is not %ld bytes long", m->path, (long)m->size);
    close(fd);
    read_file(m, found, 0, m->size);
    for (int64_t i = 0; i < m->size; i++)
        if (found[i] != m->bytes[i])
            fail("%s: byte %ld is %02x, and %02x was written", m->path, (long)i, found[i], m->bytes[i]);
    free(found);
}

int64_t model_first_data(const struct model *m, int64_t offset)
{
    for (; offset < m->size; offset++)
        if (m->bytes[offset])
            return offset;
    return -1;
}
