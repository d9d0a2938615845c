/* plane.c -- fuzz target: a whole plane, fed over its three sockets: by the kernel, by the control plane's
 * FUSE end, and by its commands, in any order.
 *
 * An input is a series of records, each a byte that says where it goes, two of length, and what is sent. The
 * loop is not run as a thread: after each record its turns are taken here, until nothing is left to do, so
 * that an input does the same every time. That is why the loop is included and not linked.
 *
 * The control plane is trusted with descriptors and memory (it is our own process), so commands carry sound
 * ones.
 */
#include "dataplane.c"

#include <assert.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "target.h"
#include "turns.h"

#define IMAGE_BYTES 20000

enum record { RAW_MESSAGE, MESSAGE, RAW_REPLY, REPLY, COMMAND, RAW_COMMAND, RECORDS };

static aiofs_image_counters counters[4];

static void once(void)
{
    static int done;
    struct rlimit limit = {16 << 20, 16 << 20};

    if (done++)
        return;
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) < 0) /* FALLOCATE may ask for anything */
        abort();
}

static struct aiofs_plane *start(void)
{
    aiofs_config config = {.queue_depth = 4, .max_images = 3, .merge = 1};
    struct aiofs_plane *plane = open_plane(&config);

    if (!plane)
        abort();
    return plane;
}

/* A message with a sound header: an opcode, a node, and then the body, with zeros behind it up to `size`. */
static void send_message(const uint8_t *data, size_t left, size_t size)
{
    static const uint64_t nodes[] = {10, 11, 1, 999};
    struct fuse_in_header header = {.unique = 4};

    if (left < 3)
        return;
    header.opcode = data[0] % 64;
    header.nodeid = nodes[data[1] % 4];
    header.unique = data[2] | (data[1] & 0x80 ? 1ull << 63 : 0);
    data += 3;
    left -= 3;
    header.len = (uint32_t)(sizeof header + size);
    memset(bytes, 0, header.len);
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, data, left < size ? left : size);
    send_to(0, bytes, header.len);
}

static void send_reply(const uint8_t *data, size_t left, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size)};

    if (left < 2)
        return;
    header.unique = data[0];
    header.error = (int8_t)data[1];
    data += 2;
    left -= 2;
    memset(bytes, 0, header.len);
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, data, left < size ? left : size);
    send_to(1, bytes, header.len);
}

static void send_command(const uint8_t *data, size_t left, const int *fds)
{
    static const int16_t sizes[] = {0, 1, 4096, 5000, -1, 32767};
    aiofs_command command = {.id = 1};

    if (left < 8)
        return;
    command.verb = data[0] % 6;
    command.node = 10 + data[1] % 4;
    command.size = sizes[data[2] % 6];
    command.driver = data[3] & 1 ? aiofs_driver_index("sync") : (int8_t)data[3] % 3;
    command.wide_driver = data[7] & 8 ? (int8_t)data[3] % 3 : command.driver;
    command.flags = data[4];
    command.block_size = 1u << data[5] % 16;
    command.error = (int8_t)data[6];
    command.fd = fds[data[7] & 1];
    command.tail_fd = data[7] & 2 ? fds[data[7] & 1] : -1;
    command.counters = data[7] & 4 ? NULL : &counters[data[1] % 4];
    send_to(2, &command, sizeof command);
}

static void feed(struct aiofs_plane *plane, const uint8_t *data, size_t size, const int *fds)
{
    while (size >= 3) {
        size_t length = data[1] | (size_t)data[2] << 8;
        size_t left;
        uint8_t where = data[0];

        data += 3;
        size -= 3;
        left = length < size ? length : size;
        switch ((enum record)(where % RECORDS)) {
        case RAW_MESSAGE:
            send_to(0, data, left);
            break;
        case MESSAGE:
            send_message(data, left, length);
            break;
        case RAW_REPLY:
            send_to(1, data, left);
            break;
        case REPLY:
            send_reply(data, left, length);
            break;
        case COMMAND:
            send_command(data, left, fds);
            break;
        case RAW_COMMAND:
            send_to(2, data, left % sizeof(aiofs_command));
            break;
        case RECORDS:
            break;
        }
        if (!(where & 0x80)) /* else several gather, as while the device works */
            take_turns(plane, where & 0x40);
        data += left;
        size -= left;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aiofs_command command = {.verb = AIOFS_REGISTER, .id = 1, .node = 10, .block_size = 1, .tail_fd = -1};
    struct aiofs_plane *plane;
    int fds[2];

    once();
    for (int i = 0; i < 2; i++)
        if ((fds[i] = memfd_create("image", MFD_CLOEXEC)) < 0 || ftruncate(fds[i], IMAGE_BYTES) < 0)
            abort();
    plane = start();
    command.fd = fds[0];
    command.counters = &counters[0];
    command.driver = command.wide_driver = aiofs_driver_index("sync");
    send_to(2, &command, sizeof command);
    feed(plane, data, size, fds);
    take_turns(plane, 0);
    assert(!plane->stuck || plane->failed || plane->pending_count == PENDING_OPENS_MAX);
    close_plane(plane);
    close(fds[0]);
    close(fds[1]);
    return 0;
}
