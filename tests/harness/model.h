/* model.h -- a real file, what has to be in it, and its registration with the plane. */
#ifndef HARNESS_MODEL_H
#define HARNESS_MODEL_H

#include "kernel.h"

#define IMAGE_MAX (3 << 20) /* bytes; no image becomes longer */

struct model {
    char path[512];
    uint64_t node;
    int direct;
    uint32_t block; /* of O_DIRECT; 1 when buffered */
    uint32_t flags; /* of aiofs_command, beside DIRECT */
    int32_t driver;
    int has_wide_driver; /* for reads of more than a block */
    int32_t wide_driver;
    int fd, tail_fd;
    int64_t size;
    unsigned char *bytes; /* IMAGE_MAX of them; 0 from size on */
    int can_punch, can_zero;
    int error; /* the sticky one of an fsync, -errno or 0 */
    aiofs_image_counters counters;
};

/* Make the file, `size` random bytes long. 0: the directory's file system knows no O_DIRECT. */
int model_open(struct model *m, const char *directory, uint64_t node, int direct, int64_t size);
void model_close(struct model *m);

/* Open the file for `driver` and serve it. */
void model_register(struct model *m, struct kernel *k, int32_t driver);
/* Take it from the plane, and close what it used. What is outstanding must have been read by the plane. */
void model_unregister(struct model *m, struct kernel *k);

/* Take `length` bytes at offset from the file into the model: a write of them has failed. */
void model_reload(struct model *m, int64_t offset, int64_t length);
/* The file holds what the model says. Nothing is in flight. */
void model_check(const struct model *m);

/* The first byte from offset on that is not 0, or -1. */
int64_t model_first_data(const struct model *m, int64_t offset);

#endif
