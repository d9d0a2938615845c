/* lumps.h -- a device that reports what it has done in lumps, and how much of an image's work it is given at a time.
 *
 * Some devices (virtual disks above all) notify us only when they have nothing left to do. Then all that was in flight
 * finishes at once; while it is being answered, and before the next requests have come, the device idles, and while
 * the device works, this thread does. So such a device gets half of what is in work: the other half is gathered
 * meanwhile, and goes out the moment the first is done, before that is answered.
 *
 * Whether it is so is seen, not configured: all ios of an image in flight were done when the loop looked, several times in
 * a row. A device that reports one by one is never given less than there is, and one that has done a part of a lump is
 * given as much again, so that nobody waits for an io that hangs. README.md has figures.
 *
 * Pure. It takes more WRITEs to make a lump.
 */
#ifndef AIOFS_LUMPS_H
#define AIOFS_LUMPS_H

/* Of one image. */
struct lumps {
    unsigned in_flight; /* ios submitted, of which */
    unsigned finished;  /* so many have been reaped in this look, */
    int has_writes;     /* not all of them READs */
    unsigned seen;      /* lumps in a row, less those that came in parts */
};

static inline void lumps_submitted(struct lumps *lumps)
{
    lumps->in_flight++;
}

static inline void lumps_reaped(struct lumps *lumps, int is_read)
{
    lumps->finished++;
    lumps->has_writes |= !is_read;
}

/* After a look, once or more often. */
void lumps_looked(struct lumps *lumps);
/* How many more ios may go out, when the image has so many requests in work. */
unsigned lumps_room(const struct lumps *lumps, unsigned in_work);
/* Is there a limit at all? */
int lumps_are_seen(const struct lumps *lumps);

#endif
