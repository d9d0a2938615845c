/* parser.c -- fuzz target: the wire format. Messages of the kernel, replies of the control plane, and the
 * amending of both, from bytes that end exactly where they say, so that a sanitizer sees a look behind the
 * end.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"
#include "target.h"

static void *exact(const uint8_t *data, size_t size)
{
    void *copy = malloc(size ? size : 1);

    assert(copy);
    memcpy(copy, data, size);
    return copy;
}

static void parse(const uint8_t *data, size_t size)
{
    size_t head = size < WIRE_HEAD ? size : WIRE_HEAD;
    void *copy = exact(data, head);
    struct message message;

    protocol_parse(&message, copy, size);
    free(copy);
    if (message.kind == MESSAGE_READ || message.kind == MESSAGE_WRITE) {
        assert(message.offset >= 0 && message.length >= 0 && message.length <= WIRE_DATA_MAX);
        assert(message.offset <= INT64_MAX - message.length);
    }
    if (message.kind == MESSAGE_WRITE)
        assert(size == WIRE_HEAD + (size_t)message.length);
    if (message.kind == MESSAGE_FALLOCATE)
        assert(message.offset >= 0 && message.length > 0 && message.offset <= INT64_MAX - message.length);
}

static void amend(const uint8_t *data, size_t size)
{
    size_t split = size ? data[0] % size : 0;
    void *request = exact(data, split), *reply = exact(data + split, size - split);

    (void)protocol_amend_init(request, split, reply, size - split, 128);
    protocol_amend_open(FUSE_OPEN, reply, size - split);
    protocol_amend_open(FUSE_CREATE, reply, size - split);
    free(request);
    free(reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *copy = exact(data, size);

    parse(data, size);
    (void)protocol_check_reply(copy, size);
    amend(data, size);
    free(copy);
    return 0;
}
