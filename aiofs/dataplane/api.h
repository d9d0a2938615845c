/* api.h -- what Python may call. Read twice: by the C compiler, and by cffi as its cdef, so that the
 * two cannot drift: no #include and no #ifdef below this comment's end; fixed-width types only.
 *
 * Results: >= 0, or -errno. C never calls into Python. Descriptors are borrowed: Python opens them, and
 * closes them after the call that gives them back has returned.
 */

/* ---- drivers ---- */

int32_t aiofs_driver_count(void); /* those for users */
const char *aiofs_driver_name(int32_t index);        /* NULL past the end */
const char *aiofs_driver_description(int32_t index);
/* The place of any driver, fault:NAME included, in the table (aiofs_command.driver), or -ENOENT. */
int32_t aiofs_driver_index(const char *name);
/* 0 when this machine can run it; else -errno, and a sentence in why. -ENOENT for an unknown name. */
int32_t aiofs_driver_probe(const char *name, char *why, uint32_t size);

/* ---- the AIO layer by itself: a queue on a driver. One thread per queue. ---- */

typedef struct aiofs_queue aiofs_queue;

typedef struct {
    uint64_t id;      /* the caller's; comes back with the result */
    int32_t op;       /* 0 read, 1 write, 2 fsync (fdatasync), 3 truncate to offset */
    int32_t fd;       /* a descriptor given to aiofs_queue_attach */
    int64_t offset;   /* bytes */
    uint64_t length;  /* bytes */
    void *buffer;     /* length bytes, valid until the io is reaped or taken back */
    int64_t result;   /* set by reap: bytes, or -errno */
} aiofs_io;

/* depth: 1 .. 4096 ios accepted and not yet reaped. */
int32_t aiofs_queue_open(aiofs_queue **out, const char *driver, uint32_t depth);
int32_t aiofs_queue_attach(aiofs_queue *q, int32_t fd);
/* -EBUSY while ios on fd are in flight. */
int32_t aiofs_queue_detach(aiofs_queue *q, int32_t fd);
/* Accepts a prefix of ios[0..n) and returns its length; fewer than n: the queue is full. An id that is
 * in flight is refused with -EEXIST (nothing accepted), an fd not attached with -EBADF. */
int32_t aiofs_queue_submit(aiofs_queue *q, const aiofs_io *ios, uint32_t n);
/* Up to max finished ios into out, waiting up to timeout_ms (-1: no limit, 0: not at all) for the first.
 * -EINTR: a signal, or the kernel's own work for a ring, ended the wait early; so for flush. */
int32_t aiofs_queue_reap(aiofs_queue *q, aiofs_io *out, uint32_t max, int32_t timeout_ms);
/* Wait until everything accepted has finished; the results stay to be reaped. 0 or -ETIME. */
int32_t aiofs_queue_flush(aiofs_queue *q, int32_t timeout_ms);
/* 0: taken back, will not be reaped. -EALREADY: it runs or has finished, reap will return it.
 * -ENOENT: no such id is in flight. */
int32_t aiofs_queue_cancel(aiofs_queue *q, uint64_t id);
int32_t aiofs_queue_in_flight(aiofs_queue *q);
/* -EBUSY while something is in flight. */
int32_t aiofs_queue_close(aiofs_queue *q);

/* ---- measure.c: one driver under a closed loop, for `aiofs bench` ---- */

typedef struct {
    int32_t fd;          /* borrowed; O_DIRECT, O_APPEND, as the caller opened it */
    int32_t op;          /* as in aiofs_io: 0 read, 1 write */
    uint32_t random;     /* 1: offsets of whole blocks drawn at random; 0: one after another, again from `start` */
    uint32_t merge;      /* 1: adjacent requests of one submit become one io, as in a mount */
    uint32_t numbered;   /* 1: each block written begins with its number, 0, 1, 2.. in the order of submission */
    uint32_t watch;      /* 1: count context switches within submit (two system calls more for each submit) */
    uint32_t depth;      /* 1 .. 1024 requests in flight */
    uint32_t block_size; /* bytes of each, a multiple of 512 up to 1 MiB */
    int64_t start, end;  /* bytes: the range of the file */
    uint64_t count;      /* end after so many requests; 0: no limit */
    int64_t warm_up_ns;  /* run so long before counting begins */
    int64_t duration_ns; /* count so long; 0: no limit */
    uint64_t seed;       /* of the offsets and of what is written */
} aiofs_workload;

typedef struct {
    uint64_t requests;    /* finished while counting */
    uint64_t ios;         /* handed to the driver for them; fewer than requests where some were merged */
    uint64_t submits;     /* batches */
    int64_t elapsed_ns;
    int64_t cpu_ns;       /* user and system time of all threads of the process (getrusage, RUSAGE_SELF) */
    int64_t switches;     /* voluntary context switches of all its threads: sleeps */
    int64_t preemptions;  /* involuntary ones */
    int64_t p50_ns, p99_ns, max_ns; /* from submit to reap; percentiles to within 3 % */
    int64_t submit_ns;    /* spent inside submit: where it is long, the driver is not asynchronous */
    int64_t submit_max_ns;
    int64_t submit_switches; /* sleeps inside submit; 0 unless watched */
    uint64_t errors;      /* requests that failed or came back short; the first one ends the run */
    int64_t error;        /* of the first: -errno, or -ENODATA for a short one */
} aiofs_measurement;

/* Keep workload->depth requests in flight until its end, the first error, or until *stop is not 0 (any
 * thread may set it); then wait for those in flight. 0, and *out; or -errno, nothing done. */
int32_t aiofs_measure(const char *driver, const aiofs_workload *workload, const int32_t *stop,
                      aiofs_measurement *out);

/* ---- the data plane ---- */

typedef struct aiofs_plane aiofs_plane;

/* So that others see whether a loop that has died had got anywhere. */
typedef struct {
    uint64_t asked;    /* messages of the kernel that want an answer */
    uint64_t answered;
} aiofs_progress;

/* How answers are written to the kernel (replies.h): as this thread's switches suggest, always each by itself,
 * always several at once. */
enum { AIOFS_REPLIES_ADAPT = 0, AIOFS_REPLIES_SINGLY = 1, AIOFS_REPLIES_TOGETHER = 2 };

typedef struct {
    int32_t fuse_fd;      /* /dev/fuse, or a SOCK_SEQPACKET socket in tests; made non-blocking */
    int32_t forward_fd;   /* SOCK_SEQPACKET, the other end is pyfuse3's */
    int32_t control_fd;   /* SOCK_SEQPACKET, commands in, answers out */
    uint32_t queue_depth; /* 1 .. 4096 requests in work at once */
    uint32_t max_images;  /* images that can be registered at once */
    uint32_t merge;       /* 0 or 1 */
    uint32_t look_us;     /* how long the adaptive look for work before a sleep may last; 0: never */
    uint32_t replies;     /* AIOFS_REPLIES_* */
    uint32_t held;        /* 1: nothing is read from the kernel before AIOFS_SERVE */
    uint32_t init_size;   /* bytes; 0: the kernel will send its INIT */
    const void *init;     /* the INIT that the kernel sent to a server before this one: the control plane gets it
                             as if it came now, and its answer goes no further; copied by aiofs_open */
    aiofs_progress *progress; /* counted up; NULL: by nobody. Valid until aiofs_close */
} aiofs_config;

/* How an image is served (aiofs_command.flags of AIOFS_REGISTER). */
enum {
    AIOFS_IMAGE_DIRECT = 1,   /* opened with O_DIRECT; block_size says its alignment in bytes */
    AIOFS_IMAGE_NO_FSYNC = 2, /* cache mode unsafe: FSYNC is answered without being done */
    AIOFS_IMAGE_BLOCKDEV = 4, /* a block device: it cannot grow */
    AIOFS_IMAGE_WRITES_BY_THREADS = 8, /* WRITEs go to `threads`: the driver would do them one by one */
    AIOFS_IMAGE_DSYNC = 16    /* opened with O_DSYNC: a change of blocks is on disk when it is answered, too */
};

/* Requests by how long they took, from the drain that read them until the result of their last io was taken up
 * (README.md says how far that is exact). histogram.h has the buckets, aiofs_latency_limit their limits. */
enum { AIOFS_LATENCY_BUCKETS = 106 };
typedef struct {
    uint64_t sum_ns;
    uint64_t buckets[AIOFS_LATENCY_BUCKETS]; /* requests; their sum is the number of all */
} aiofs_latency;

/* Counters are written by the data plane's thread only, with plain stores, and read by others at any time;
 * each value is current or a moment old. */
typedef struct {
    uint64_t requests_read, requests_write, requests_fsync, requests_fallocate, requests_lseek, requests_truncate;
    uint64_t ios_read, ios_write, ios_fsync, ios_fallocate, ios_lseek;
    uint64_t batches;       /* submits that carried at least one io of the image */
    uint64_t merged;        /* requests that joined another one's io */
    uint64_t bytes_read, bytes_written;
    uint64_t errors;        /* requests answered with an errno; not LSEEKs that found nothing (ENXIO) */
    uint64_t waits;         /* requests that waited for an overlapping one */
    uint64_t unaligned;     /* requests that had to be padded */
    uint64_t retries;       /* ios done again: split, short, EINTR, EAGAIN */
    uint64_t in_flight;     /* requests in work now */
    int64_t sticky_error;   /* -errno of a failed fsync, or 0; set before that fsync is answered */
    uint64_t opens;         /* that the kernel has been told of, and has not released */
    aiofs_latency latency[5]; /* answered requests: read, write, fsync, fallocate, lseek */
} aiofs_image_counters;

/* Commands on control_fd, answered one by one, in any order, by aiofs_answer with the same id. */
enum {
    AIOFS_REGISTER = 1,   /* serve `node` from now on: fd, tail_fd, driver, flags, block_size, error, counters */
    AIOFS_UNREGISTER = 2, /* stop serving it; answered when nothing of it is in flight any more */
    AIOFS_TRUNCATE = 3,   /* wait for all before it, set the size to `size` bytes, then let later ones go */
    AIOFS_OPEN_DRIVER = 4, /* make driver's queue ready, so that its errors show at mount */
    AIOFS_SERVE = 5       /* begin to read from the kernel (aiofs_config.held); with AIOFS_RESEND in flags, have it
                             send again what it sent to a server before this one, and got no answer to */
};

enum { AIOFS_RESEND = 1 };

typedef struct {
    uint64_t id;
    uint64_t node;
    int64_t size;
    uint32_t verb;
    int32_t fd;          /* the image's data requests go here */
    int32_t tail_fd;     /* DIRECT only: the same file, buffered with O_DSYNC, for a tail that is no whole block */
    int32_t driver;      /* index in the table of drivers */
    uint32_t flags;
    uint32_t block_size; /* bytes, a power of two, 1 for buffered images */
    int32_t error;       /* a sticky fsync error (-errno) from an earlier registration, or 0 */
    int32_t wide_driver; /* index of the driver for reads of more than a block; often the same */
    uint64_t handle;     /* what the opens of this registration are answered with; RELEASEs of others are not of it */
    /* Python's memory, counted up from what is in it until UNREGISTER is answered or aiofs_run has returned:
     * so the counters of an image go on when it is opened again. */
    aiofs_image_counters *counters;
} aiofs_command;

typedef struct {
    uint64_t id;
    int64_t result; /* REGISTER: the image's slot; UNREGISTER: the sticky fsync error or 0; else 0; or -errno */
} aiofs_answer;

typedef struct {
    uint64_t requests;      /* messages read from the kernel */
    uint64_t forwarded;     /* of them passed to the control plane */
    uint64_t refused;       /* malformed messages */
    uint64_t batches;       /* submits that carried at least one io */
    uint64_t ios;           /* of all batches */
    uint64_t batch_ios[13]; /* batches by ios: [k] holds 2^k .. 2^(k+1)-1 */
    uint64_t sleeps;        /* waits in which the thread slept */
    uint64_t looks;         /* sleeps that were avoided by looking a little longer */
    uint64_t look_trials;   /* how often the other of looking and sleeping was tried */
    uint64_t in_flight;     /* requests in work now */
    uint64_t replies_together; /* answers that shared a system call with others */
    uint64_t halves;        /* batches after which requests were held back (lumps.h) */
    uint64_t stood_in;      /* ios after which the stand-in answered in the loop's place (stand_in.h) */
} aiofs_plane_counters;

/* Checks the configuration, allocates everything. 0 and *out, or -errno. */
int32_t aiofs_open(aiofs_plane **out, const aiofs_config *config);
/* Serve until the kernel unmounts (returns 0) or aiofs_stop is called (returns 1), in-flight requests
 * finished in both cases; or -errno. Call it in a thread of its own; blocks all signals there. */
int32_t aiofs_run(aiofs_plane *plane);
/* Read no more requests, finish what is in flight, return from aiofs_run. Any thread, any number of times. */
int32_t aiofs_stop(aiofs_plane *plane);
/* After aiofs_run has returned. */
void aiofs_close(aiofs_plane *plane);

const aiofs_plane_counters *aiofs_counters(aiofs_plane *plane);
/* The longest duration of a bucket in ns; UINT64_MAX for the last one. */
uint64_t aiofs_latency_limit(uint32_t bucket);
/* The kernel's INIT request and the answer it got, for a successor; bytes copied, or -ENODATA, -ERANGE. */
int32_t aiofs_init_exchange(aiofs_plane *plane, int32_t reply, void *buffer, uint32_t size);

/* ---- the fault drivers (drivers/fault.c): one plan for all of the process that serves through `fault:NAME` ---- */

enum { AIOFS_FAULT_ERROR = 0, AIOFS_FAULT_SHORT = 1, AIOFS_FAULT_DELAY = 2, AIOFS_FAULT_STALL = 3 };
enum { AIOFS_FAULTS_MAX = 64 };

typedef struct {
    int32_t kind;
    uint32_t ops;         /* what it may strike: bit 1 << op, op as in aiofs_io, and 4 fallocate, 5 lseek */
    int64_t value;        /* error: -errno; short: bytes that are done at most, -1 for half; delay, stall: ns */
    int64_t from, to;     /* only ios that touch bytes from .. to-1; fsync, truncate and lseek always do */
    uint64_t first, last; /* of the ios that it may strike, counted from 1, those numbered so */
    uint64_t chance;      /* with this probability, in units of 2^-32 */
    int32_t spares_threads; /* 1: not those that are marked as blocking */
    int32_t pad;
} aiofs_fault;

typedef struct {
    uint64_t ios;      /* submitted */
    uint64_t overlaps; /* of them while one that they overlap was in flight, one of the two a change */
    uint64_t struck[AIOFS_FAULTS_MAX]; /* by fault, in the order of adding */
} aiofs_fault_counts;

typedef struct {
    int64_t offset;
    uint64_t length;
    int32_t op;
    int32_t fd;
    uint32_t segments;
    uint32_t batch;  /* ios in the submit that it came with */
    uint32_t blocks; /* 1: marked as blocking, so that `threads` does it */
    uint32_t pad;
} aiofs_fault_entry;

/* Forget every fault, count and entry. `seed`: of chances and of the order; reorder 1: in any order. */
int32_t aiofs_fault_reset(uint64_t seed, int32_t reorder);
/* One more fault; of those that give a result the first that strikes an io counts. -ENOSPC: there are too many. */
int32_t aiofs_fault_add(const aiofs_fault *fault);
int32_t aiofs_fault_read(aiofs_fault_counts *out);
/* For tests: 1: nothing is started until 0. */
int32_t aiofs_fault_hold(int32_t hold);
/* For tests: the first 65,536 ios that were submitted, in order; how many were copied. */
int32_t aiofs_fault_log(aiofs_fault_entry *out, uint32_t max);

/* ---- merge.h, protocol.h, histogram.h, waiting.h and lumps.h, for tests (testing.c) ---- */

typedef struct {
    uint64_t stream;
    int64_t offset;
    uint32_t length;
    int32_t next;
} aiofs_span;
int32_t aiofs_merge(aiofs_span *spans, uint32_t n, int32_t *heads);
/* For scripts/bench: processor time, ns, of planning so many batches of these spans anew; -ENOMEM. */
int64_t aiofs_merge_cost_ns(const aiofs_span *spans, uint32_t n, uint32_t batches);

typedef struct {
    int32_t kind; /* 0 read, 1 write, 2 fsync, 3 fallocate, 4 lseek, 5 other, 6 ignored, 7 refused */
    uint32_t opcode;
    uint64_t unique;
    uint64_t node;
    int64_t offset;
    int64_t length;
    uint32_t mode;
    uint32_t pad;
} aiofs_message;
int32_t aiofs_parse(const void *data, uint32_t size, aiofs_message *out);
uint32_t aiofs_latency_bucket(uint64_t ns);

/* What the loop does before and after a wait, again and again, in simulated time: `sleep_ns` and `look_ns` a request
 * in the two manners, of a process that uses so many hundredths of a core, or (-1) a kernel thread, until it is `until_ns`.
 * Returns the requests that there have been since aiofs_waiting_reset; `looks`: how many of them were waited for looking. */
uint64_t aiofs_waiting_run(int64_t until_ns, int64_t sleep_ns, int64_t look_ns, int32_t processor_percent,
                           uint64_t *looks);
/* Anew: at time 0, looks of up to limit_ns; on_device 1: I/O is waited for, 0: callers only; is_lone 1: that of
 * one request at a time, which the kernel does. */
void aiofs_waiting_reset(int64_t limit_ns, int32_t on_device, int32_t is_lone);
uint64_t aiofs_waiting_trials(void);
/* Processor time that the process has used, ns; 0: unknown. */
int64_t aiofs_waiting_processor_ns(uint32_t pid);

/* The loop looks at a device: of so many ios in flight, so many have finished; reads 1: all of these were READs. */
typedef struct {
    uint32_t finished, in_flight;
    int32_t reads;
} aiofs_look;
/* How many ios may be in flight after these looks, with so many requests in work; UINT32_MAX: any number. */
uint32_t aiofs_lumps_limit(const aiofs_look *looks, uint32_t n, uint32_t in_work);

/* ---- system calls that Python lacks ---- */

/* openat2(2) beneath root_fd: RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV. O_CLOEXEC is added.
 * A descriptor, or -errno. */
int32_t aiofs_open_beneath(int32_t root_fd, const char *path, uint64_t flags, uint64_t mode);
/* Keep, of the capabilities that this thread has (capabilities(7)), those with a bit in `keep`: permitted and
 * effective; none is inheritable or ambient, and the bounding set has no others where it may be changed. Threads
 * made later inherit that; those there are keep what they have. 0 or -errno. */
int32_t aiofs_limit_capabilities(uint64_t keep);
/* PR_SET_NO_NEW_PRIVS (prctl(2)), inherited as well: no program that is started gains a privilege. 0 or -errno. */
int32_t aiofs_refuse_new_privileges(void);
/* renameat2(2). */
int32_t aiofs_rename(int32_t old_dir, const char *old_name, int32_t new_dir, const char *new_name, uint32_t flags);

typedef struct {
    int64_t birth_ns;       /* stx_btime in nanoseconds since 1970, 0 when the file system keeps none */
    uint32_t dio_mem_align; /* STATX_DIOALIGN, bytes; 0: not supported, or not known */
    uint32_t dio_offset_align;
    uint32_t dio_known;     /* 1 when the kernel answered STATX_DIOALIGN */
    uint32_t pad;
} aiofs_statx_result;
/* statx(2) of an open descriptor (O_PATH will do). */
int32_t aiofs_statx(int32_t fd, aiofs_statx_result *out);

typedef struct {
    uint64_t dev;           /* of the file system, as in st_dev */
    uint64_t ino;
    int64_t size;           /* bytes */
    int64_t blocks;         /* units of 512 bytes */
    int64_t atime_ns, mtime_ns, ctime_ns; /* since 1970 */
    int64_t birth_ns;       /* 0 when the file system keeps none */
    uint32_t mode, nlink, uid, gid;
    uint32_t blksize;
    uint32_t mount_root;    /* 1: something is mounted here */
} aiofs_stat_result;
/* statx(2) of name in dir_fd, or of dir_fd itself when name is ""; a symbolic link is not followed. */
int32_t aiofs_stat(int32_t dir_fd, const char *name, aiofs_stat_result *out);

/* prctl(PR_SET_IO_FLUSHER): of the calling thread, and of those that it starts later. */
int32_t aiofs_become_io_flusher(void);
/* mlockall(2) of the whole process, now and later, page by page as they are touched. */
int32_t aiofs_lock_memory(void);
