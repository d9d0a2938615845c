/* testing.c -- the pure rooms (merge, protocol, histogram) made callable for the tests. No state of the plane. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "contract.h"
#include "histogram.h"
#include "merge.h"
#include "protocol.h"

int32_t aiofs_merge(aiofs_span *spans, uint32_t n, int32_t *heads)
{
    struct merge *m = merge_new(n ? n : 1);
    int ios;

    if (!m)
        return -ENOMEM;
    _Static_assert(sizeof(aiofs_span) == sizeof(struct span), "one layout, two names");
    ios = merge_plan(m, (struct span *)(void *)spans, (int)n, heads);
    merge_free(m);
    return ios;
}

/* The message is put directly before a page that cannot be read: a parser that looks past its end
 * does not survive the test. */
int32_t aiofs_parse(const void *data, uint32_t size, aiofs_message *out)
{
    const size_t page = 4096;
    uint32_t head = size < WIRE_HEAD ? size : (uint32_t)WIRE_HEAD;
    struct message message;
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED || mprotect(memory + page, page, PROT_NONE) < 0)
        return -errno;
    memcpy(memory + page - head, data, head);
    protocol_parse(&message, memory + page - head, size);
    munmap(memory, 2 * page);
    *out = (aiofs_message){
        .kind = (int32_t)message.kind,
        .opcode = message.opcode,
        .unique = message.unique,
        .node = message.node,
        .offset = message.offset,
        .length = message.length,
        .mode = message.mode,
    };
    return 0;
}

uint32_t aiofs_latency_bucket(uint64_t ns)
{
    return histogram_bucket(ns);
}
