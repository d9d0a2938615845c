/* space.h -- FALLOCATE and LSEEK, where they differ from other data requests: what may be asked, which range
 * each locks, and what its errors mean. Knows images and requests; their life is serve.c's.
 *
 *   a FALLOCATE             | locks
 *   within the image        | the pages that it touches: their parts are zeroed through the page cache
 *   that may pass its end   | everything: XFS can lose data when an allocation past the end meets writes
 *                           | there, and whether it does pass it depends on all that came before
 *
 *   an LSEEK                | all from its offset on
 */
#ifndef AIOFS_SPACE_H
#define AIOFS_SPACE_H

#include "image.h"
#include "protocol.h"

/* Put what a FALLOCATE or LSEEK asks into r, and count it. */
void space_take(struct request *r, struct image *image, const struct message *message);

/* -errno for what no image can do; 0: its file system is to be asked. */
int space_refuses(const struct request *r);

/* Set the range that r, a FALLOCATE or LSEEK of r->image, locks; any other kind stays as it is. */
void space_set_lock(struct request *r);

/* What an error (< 0) of any request's io comes to: mostly itself; the result of an LSEEK of what has no holes. */
int64_t space_result(const struct request *r, int64_t error);

/* Is this error a result like others? ENXIO is how an LSEEK says that there is nothing more to find. */
int space_is_answer(const struct request *r, int64_t error);

#endif
