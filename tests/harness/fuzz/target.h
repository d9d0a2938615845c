/* target.h -- what a fuzz target has: libFuzzer calls it with inputs that it makes up, replay.c with those
 * of files. */
#ifndef HARNESS_TARGET_H
#define HARNESS_TARGET_H

#include <stddef.h>
#include <stdint.h>

/* 0. Must end the process when it finds something wrong, and keep nothing for the next call. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
