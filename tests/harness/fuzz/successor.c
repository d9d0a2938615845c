/* successor.c -- fuzz target: a plane that takes over from one that has died, with what the ledger had for
 * it: the kernel's INIT, how far requests had got, and an image's counters with the errno of a failed fsync.
 *
 * An input is: the size of the INIT (two bytes), one byte of flags, the errno, progress, the head of the
 * counters, the INIT, and then the answer of the control plane to it. What a successor counts goes on from
 * what it was given, and it reads nothing of the kernel before it is told to.
 */
#include "dataplane.c"

#include <assert.h>
#include <sys/mman.h>

#include "target.h"
#include "turns.h"

#define COUNTERS_HEAD offsetof(aiofs_image_counters, latency)
#define FIXED (2 + 1 + 2 + sizeof(aiofs_progress) + COUNTERS_HEAD)
#define NODE 10

enum flag { OPEN_IT = 1, RESEND = 2, SERVE = 4, FAIL_ANSWER = 8 };

static aiofs_progress progress;
static aiofs_image_counters counters;

static void register_image(int fd, int error)
{
    aiofs_command command = {.verb = AIOFS_REGISTER, .id = 1, .node = NODE, .block_size = 1, .tail_fd = -1};

    command.fd = fd;
    command.error = error;
    command.counters = &counters;
    command.driver = command.wide_driver = aiofs_driver_index("sync");
    send_to(2, &command, sizeof command);
}

static void ask(uint32_t opcode, const void *body, size_t size)
{
    struct fuse_in_header header = {.len = (uint32_t)(sizeof header + size), .opcode = opcode};

    header.unique = 8;
    header.nodeid = NODE;
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, body, size);
    send_to(0, bytes, header.len);
}

/* The control plane's answer to what it was sent: the replayed INIT, which has a number of the loop's, or
 * something else. */
static void answer(const uint8_t *data, size_t size, int error)
{
    struct fuse_in_header asked;
    struct fuse_out_header header = {.error = error};
    ssize_t got;

    do /* waits: a thread of the plane's own sends it (outbox.c); and libFuzzer's timer interrupts */
        got = recv(pairs[1][0], bytes, sizeof bytes, 0);
    while (got < 0 && errno == EINTR);
    if (got < (ssize_t)sizeof asked)
        abort();
    memcpy(&asked, bytes, sizeof asked);
    header.unique = asked.unique;
    header.len = (uint32_t)(sizeof header + size);
    memcpy(bytes, &header, sizeof header);
    if (size)
        memcpy(bytes + sizeof header, data, size);
    send_to(1, bytes, header.len);
}

/* What it would do for the kernel: two reads, an fsync, a release. */
static void serve_some(struct aiofs_plane *plane, uint8_t flags, int error)
{
    aiofs_command serve = {.verb = AIOFS_SERVE, .id = 2, .flags = flags & RESEND ? AIOFS_RESEND : 0};
    struct fuse_read_in reading = {.size = 4096};
    struct fuse_fsync_in syncing = {.fsync_flags = 1};
    struct fuse_release_in releasing = {.fh = 0}; /* as register_image has it */
    aiofs_image_counters before = counters;
    aiofs_progress begun = progress;

    ask(FUSE_READ, &reading, sizeof reading);
    take_turns(plane, 0);
    assert(progress.asked == begun.asked && counters.requests_read == before.requests_read);
    if (!(flags & SERVE))
        return;
    send_to(2, &serve, sizeof serve);
    take_turns(plane, 0);
    ask(FUSE_FSYNC, &syncing, sizeof syncing);
    ask(FUSE_RELEASE, &releasing, sizeof releasing);
    take_turns(plane, 1);
    if (plane->failed)
        return;
    answer(NULL, 0, 0);
    take_turns(plane, 0);
    assert(progress.asked == begun.asked + 3);
    assert(counters.sticky_error == error && counters.in_flight == 0);
    assert(counters.requests_read == before.requests_read + 1);
    assert(counters.requests_fsync == before.requests_fsync + 1);
    assert(counters.opens == before.opens - (before.opens != 0));
}

static void take_over(struct aiofs_plane *plane, const uint8_t *reply, size_t size, uint8_t flags, int error)
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, 20000) < 0)
        abort();
    register_image(fd, error);
    plane->failed = forward_replay_init(plane);
    take_turns(plane, 1);
    if (!plane->failed) {
        answer(reply, size, flags & FAIL_ANSWER ? -EPROTO : 0);
        take_turns(plane, 0);
    }
    if (!plane->failed)
        serve_some(plane, flags, error);
    close_plane(plane);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aiofs_config config = {.queue_depth = 4, .max_images = 3, .merge = 1, .held = 1};
    uint8_t fixed[FIXED];
    struct aiofs_plane *plane;
    uint16_t error;
    void *init;

    if (size < FIXED)
        return 0;
    memcpy(fixed, data, FIXED);
    data += FIXED;
    size -= FIXED;
    memcpy(&error, fixed + 3, sizeof error);
    memcpy(&progress, fixed + 5, sizeof progress);
    memset(&counters, 0, sizeof counters);
    memcpy(&counters, fixed + 5 + sizeof progress, COUNTERS_HEAD);
    config.init_size = fixed[0] | (uint32_t)fixed[1] << 8;
    if (config.init_size > size || !config.init_size)
        return 0;
    init = malloc(config.init_size);
    assert(init);
    memcpy(init, data, config.init_size);
    config.init = init;
    config.progress = &progress;
    plane = open_plane(&config);
    free(init); /* it has been copied */
    if (plane)
        take_over(plane, data + config.init_size, size - config.init_size, fixed[2], -(error % 4096));
    return 0;
}
