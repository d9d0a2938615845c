/* protocol.h -- the FUSE wire format: bytes in, a checked message out; results in, bytes out. No I/O.
 *
 * A message is read in two pieces: the first WIRE_HEAD bytes into a request's head, the rest into its
 * page-aligned payload. WIRE_HEAD is the size of the fixed part of a WRITE, so that its data lands
 * aligned. Every field is hostile until protocol_parse has passed it.
 */
#ifndef AIOFS_PROTOCOL_H
#define AIOFS_PROTOCOL_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

/* The longest READ or WRITE: what the amended INIT reply allows, and FUSE's own default limit
 * (256 pages, fs.fuse.max_pages_limit). */
#define WIRE_DATA_MAX (1u << 20)

/* INIT flags newer than Debian 12's linux/fuse.h; bits of flags2, which holds bits 32..63. */
#define INIT2_DIRECT_IO_ALLOW_MMAP (1u << (36 - 32)) /* 7.39 */
#define INIT2_HAS_RESEND (1u << (39 - 32))           /* 7.40 */

enum message_kind {
    MESSAGE_READ,
    MESSAGE_WRITE,
    MESSAGE_FSYNC,
    MESSAGE_FALLOCATE,
    MESSAGE_LSEEK,
    MESSAGE_OTHER,   /* for the control plane */
    MESSAGE_IGNORED, /* wants no answer and no work: INTERRUPT */
    MESSAGE_REFUSED  /* malformed: answer -EINVAL if it has a unique */
};

/* In `unique`: sent before, to a server that died or was replaced before it answered. */
#define WIRE_RESENT (UINT64_C(1) << 63)
/* In the `pid` of such a message when it is passed to the control plane, which never sees its unique. Process ids
 * stay below 2^22 (PID_MAX_LIMIT). */
#define WIRE_PID_RESENT (1u << 30)

struct message {
    enum message_kind kind;
    uint32_t opcode;
    uint64_t unique; /* as it came: bit 63 marks a resend, and the reply has to keep it */
    uint64_t node;
    uint32_t pid;    /* of the thread that asks; 0: not known here */
    int64_t offset;  /* READ, WRITE, FALLOCATE: bytes, 0 .. INT64_MAX - length; LSEEK: anything */
    int64_t length;  /* READ, WRITE: bytes, 0 .. WIRE_DATA_MAX; FALLOCATE: bytes, > 0; else 0 */
    uint32_t mode;   /* FALLOCATE: as in fallocate(2); LSEEK: whence; not checked */
};

/* Check and take apart a message of `size` bytes whose first min(size, WIRE_HEAD) bytes are at head. */
void protocol_parse(struct message *out, const void *head, size_t size);

int protocol_wants_answer(const struct message *message);

/* Tell the control plane that the message at head was sent before. */
void protocol_mark_resent(void *head);

/* What a reply from the control plane is, judged by itself. */
enum reply_kind { REPLY_ANSWER, REPLY_NOTIFY, REPLY_REFUSED };

/* A whole message from the control plane. Refused: a length that is not its size, an error out of
 * range, and every notification but an attribute-only INVAL_INODE. The others make the kernel wait for
 * locks that are held by requests which only this thread can answer. */
enum reply_kind protocol_check_reply(const void *reply, size_t size);

/* Amend the INIT reply in place: what the data plane can do and libfuse does not know. `request` is
 * the kernel's INIT message. Returns 0, or -EPROTO when either is no INIT that we can work with. */
int protocol_amend_init(const void *request, size_t request_size, void *reply, size_t reply_size,
                        uint32_t queue_depth);

/* Amend an OPEN or CREATE reply in place: files opened with O_DIRECT (the control plane answers those
 * with FOPEN_DIRECT_IO) may be written by several processes at once. */
void protocol_amend_open(uint32_t opcode, void *reply, size_t reply_size);

/* The node that a CREATE reply tells of; 0 when it is none. */
uint64_t protocol_created_node(const void *reply, size_t reply_size);

#endif
