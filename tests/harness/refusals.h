/* refusals.h -- system calls and allocations that fail when the harness wants it.
 *
 * The linker sends the data plane's calls to the functions __wrap_* of refusals.c (build.py tells it of
 * them); calls of libraries stay as they are. Any thread may call them.
 */
#ifndef HARNESS_REFUSALS_H
#define HARNESS_REFUSALS_H

/* From now on about one in `n` calls of other threads that may be tried again is interrupted, or finds no
 * room for the moment: nothing that a caller of the plane may notice. 0: none. */
void refusals_disturb(unsigned n);

/* The plane and the queues of `driver`, opened, used and closed again and again; each time another one of
 * the calls that need memory, descriptors or threads fails, until none is left that has not. An error must
 * come back, and nothing be left behind (a leak checker sees the latter). */
void exercise_refusals(const char *directory, const char *driver);

#endif
