/* protocol.c -- see protocol.h. Pure: no I/O, no state, no allocation. */
#include <errno.h>
#include <string.h>

#include "protocol.h"

static int has_range(uint64_t offset, uint32_t length)
{
    return length <= WIRE_DATA_MAX && offset <= (uint64_t)INT64_MAX - length;
}

static enum message_kind parse_read(struct message *out, const char *body, size_t body_size)
{
    struct fuse_read_in in;

    if (body_size < sizeof in)
        return MESSAGE_REFUSED;
    memcpy(&in, body, sizeof in);
    if (!has_range(in.offset, in.size))
        return MESSAGE_REFUSED;
    out->offset = (int64_t)in.offset;
    out->length = in.size;
    return MESSAGE_READ;
}

static enum message_kind parse_write(struct message *out, const char *body, size_t body_size)
{
    struct fuse_write_in in;

    if (body_size < sizeof in)
        return MESSAGE_REFUSED;
    memcpy(&in, body, sizeof in);
    if (!has_range(in.offset, in.size) || body_size - sizeof in != in.size)
        return MESSAGE_REFUSED;
    out->offset = (int64_t)in.offset;
    out->length = in.size;
    return MESSAGE_WRITE;
}

static enum message_kind parse_fallocate(struct message *out, const char *body, size_t body_size)
{
    struct fuse_fallocate_in in;

    if (body_size < sizeof in)
        return MESSAGE_REFUSED;
    memcpy(&in, body, sizeof in);
    if (in.length == 0 || in.length > INT64_MAX || in.offset > (uint64_t)INT64_MAX - in.length)
        return MESSAGE_REFUSED;
    out->offset = (int64_t)in.offset;
    out->length = (int64_t)in.length;
    out->mode = in.mode;
    return MESSAGE_FALLOCATE;
}

/* The kernel passes on what lseek(2) was called with: a negative offset is no malformed message. */
static enum message_kind parse_lseek(struct message *out, const char *body, size_t body_size)
{
    struct fuse_lseek_in in;

    if (body_size < sizeof in)
        return MESSAGE_REFUSED;
    memcpy(&in, body, sizeof in);
    out->offset = (int64_t)in.offset;
    out->mode = in.whence;
    return MESSAGE_LSEEK;
}

void protocol_parse(struct message *out, const void *head, size_t size)
{
    const char *body = (const char *)head + sizeof(struct fuse_in_header);
    struct fuse_in_header in;
    size_t body_size;

    memset(out, 0, sizeof *out);
    out->kind = MESSAGE_REFUSED;
    if (size < sizeof in)
        return;
    memcpy(&in, head, sizeof in);
    out->opcode = in.opcode;
    out->unique = in.unique;
    out->node = in.nodeid;
    out->pid = in.pid;
    if (in.len != size)
        return;
    body_size = size - sizeof in;
    switch (in.opcode) {
    case FUSE_READ:
        out->kind = parse_read(out, body, body_size);
        break;
    case FUSE_WRITE:
        out->kind = parse_write(out, body, body_size);
        break;
    case FUSE_FSYNC:
        out->kind = body_size < sizeof(struct fuse_fsync_in) ? MESSAGE_REFUSED : MESSAGE_FSYNC;
        break;
    case FUSE_FALLOCATE:
        out->kind = parse_fallocate(out, body, body_size);
        break;
    case FUSE_LSEEK:
        out->kind = parse_lseek(out, body, body_size);
        break;
    case FUSE_INTERRUPT:
        /* May be ignored, and must not be answered ENOSYS: the kernel would stop sending it. Submitted
         * writes are never cancelled, so there is nothing to do about it. */
        out->kind = MESSAGE_IGNORED;
        break;
    default:
        out->kind = MESSAGE_OTHER;
    }
}

static int is_attribute_invalidation(const char *body, size_t body_size)
{
    struct fuse_notify_inval_inode_out out;

    if (body_size != sizeof out)
        return 0;
    memcpy(&out, body, sizeof out);
    return out.off < 0;
}

enum reply_kind protocol_check_reply(const void *reply, size_t size)
{
    const char *body = (const char *)reply + sizeof(struct fuse_out_header);
    struct fuse_out_header out;

    if (size < sizeof out)
        return REPLY_REFUSED;
    memcpy(&out, reply, sizeof out);
    if (out.len != size)
        return REPLY_REFUSED;
    if (out.unique != 0) /* the kernel takes errors from -511 to 0 (fs/fuse/dev.c) */
        return out.error > 0 || out.error <= -512 ? REPLY_REFUSED : REPLY_ANSWER;
    if (out.error == FUSE_NOTIFY_INVAL_INODE && is_attribute_invalidation(body, size - sizeof out))
        return REPLY_NOTIFY;
    return REPLY_REFUSED;
}

/* Linux offers these in flags; we want them whatever libfuse thought of them. */
#define WANTED (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES)
#define WANTED2 (INIT2_DIRECT_IO_ALLOW_MMAP | INIT2_HAS_RESEND)

/* Never: with the writeback cache dirty data would live in the kernel and die with an aborted
 * connection. AUTO_INVAL_DATA would send a GETATTR to Python before every buffered read that follows a
 * write, and drop the page cache of an image for each of its own writes; open() decides about the cache. */
#define UNWANTED ((uint32_t)(FUSE_WRITEBACK_CACHE | FUSE_AUTO_INVAL_DATA))

int protocol_amend_init(const void *request, size_t request_size, void *reply, size_t reply_size,
                        uint32_t queue_depth)
{
    const char *request_body = (const char *)request + sizeof(struct fuse_in_header);
    char *reply_body = (char *)reply + sizeof(struct fuse_out_header);
    struct fuse_init_in in = {0};
    struct fuse_init_out out;
    size_t in_size;

    if (request_size < sizeof(struct fuse_in_header) ||
        reply_size != sizeof(struct fuse_out_header) + sizeof out)
        return -EPROTO;
    in_size = request_size - sizeof(struct fuse_in_header);
    if (in_size < offsetof(struct fuse_init_in, flags2)) /* 7.36 added flags2 */
        return -EPROTO;
    memcpy(&in, request_body, in_size < sizeof in ? in_size : sizeof in);
    memcpy(&out, reply_body, sizeof out);

    out.flags = (out.flags | (in.flags & WANTED)) & ~UNWANTED;
    if (in.flags & FUSE_INIT_EXT) {
        out.flags |= FUSE_INIT_EXT;
        out.flags2 |= in.flags2 & WANTED2;
    }
    out.max_write = WIRE_DATA_MAX;
    out.max_pages = (uint16_t)(WIRE_DATA_MAX / 4096);
    if (!(in.flags & FUSE_MAX_PAGES))
        out.max_write = 32 * 4096; /* the kernel's limit before max_pages (7.28) */
    out.max_background = (uint16_t)(queue_depth > UINT16_MAX ? UINT16_MAX : queue_depth);
    out.congestion_threshold = (uint16_t)(out.max_background - out.max_background / 4);
    memcpy(reply_body, &out, sizeof out);
    return 0;
}

void protocol_amend_open(uint32_t opcode, void *reply, size_t reply_size)
{
    size_t at = sizeof(struct fuse_out_header) + (opcode == FUSE_CREATE ? sizeof(struct fuse_entry_out) : 0);
    struct fuse_open_out open;

    if (reply_size != at + sizeof open) /* an error, or nothing we know */
        return;
    memcpy(&open, (char *)reply + at, sizeof open);
    if (open.open_flags & FOPEN_DIRECT_IO) {
        open.open_flags |= FOPEN_PARALLEL_DIRECT_WRITES;
        memcpy((char *)reply + at, &open, sizeof open);
    }
}

uint64_t protocol_created_node(const void *reply, size_t reply_size)
{
    struct fuse_entry_out entry;

    if (reply_size < sizeof(struct fuse_out_header) + sizeof entry)
        return 0;
    memcpy(&entry, (const char *)reply + sizeof(struct fuse_out_header), sizeof entry);
    return entry.nodeid;
}

int protocol_wants_answer(const struct message *message)
{
    return message->kind != MESSAGE_IGNORED && message->opcode != FUSE_FORGET && message->opcode != FUSE_BATCH_FORGET;
}

void protocol_mark_resent(void *head)
{
    struct fuse_in_header header;

    memcpy(&header, head, sizeof header);
    header.pid |= WIRE_PID_RESENT;
    memcpy(head, &header, sizeof header);
}
