/* faults.h -- what strikes the ios of the drivers `fault:NAME`, by the seed. It knows nothing of requests. */
#ifndef HARNESS_FAULTS_H
#define HARNESS_FAULTS_H

#include <stdint.h>

/* From here on none, until some are added. */
void faults_none(void);
/* It strikes the next `times` ios of that kind. */
void faults_add(int kind, uint64_t op, int64_t value, uint64_t times);
/* Add one of which a caller can notice nothing: what is short, late, or to be tried again. */
void faults_disturb(void);
/* None, and none of the ios so far was in flight with one that it overlaps; or the process ends. */
void faults_forget(void);

#endif
