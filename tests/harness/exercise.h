/* exercise.h -- what the harness does with a plane: random requests against a model of every byte. */
#ifndef HARNESS_EXERCISE_H
#define HARNESS_EXERCISE_H

/* `operations` random ones on two images under `directory`, one of them O_DIRECT where that is known, served
 * by the driver of that name; ends by a stop, or an unmount, with requests on their way. Fails by ending the
 * process. */
void exercise_plane(const char *directory, const char *driver, unsigned operations);

/* The same for the queues of the AIO layer (aiofs_queue_*), and the closed loop of `aiofs bench`. */
void exercise_queue(const char *directory, const char *driver, unsigned operations);
void exercise_measure(const char *directory, const char *driver);

#endif
