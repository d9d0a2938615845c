/* threads.c -- the driver that is a pool of threads, each doing one system call at a time. It
 * runs on every Linux and does every operation.
 *
 * Threads: the caller's, up to `limit` workers, and the hirer, which creates them: that takes memory, and who
 * submits must not wait for any (populate.h). One mutex guards everything under "queued" below; no system call
 * is made with it held. Finished ios go back without it, over `done`, a list that workers push onto and that
 * the caller takes whole.
 * States of an io: queued -> running (popped by a worker) -> done -> ready (taken by the caller, in the
 * order in which they finished) -> handed out by reap.
 * Ordering: workers pop in the order of submission, and one io at a time, at the last moment, so that a
 * sequential stream reaches the device in order; ios of one file run in parallel.
 * Invariants: coming + idle + waking + busy workers == workers. Whenever something is queued and a worker is idle,
 * at least as many workers are waking as ios are queued: nothing waits while somebody sleeps. A worker
 * writes the eventfd when it finds `done` empty; who reaps until fewer than max come back has emptied it.
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "driver.h"
#include "populate.h"

/* The most that run at once. Random 4 KiB O_DIRECT reads, in 1,000 IOPS, on 2 cores (Linux AIO: 62 at depth 32,
 * 75-84 at 128): at depth 128, 16 workers do 45-63, 32 do 60-67, 64 do 69-73; at depth 32 the limit is the
 * depth, and 58-63. Two runs of 1.5-2 s each on a busy machine. Workers not needed are never created. */
#define WORKERS_MAX 64u

/* A worker calls into the kernel with a handful of words on its stack; the rest is for the static
 * thread-local storage of whatever else is loaded into the process, which glibc takes from the stack. */
#define WORKER_STACK_BYTES ((size_t)128 << 10)
#define WORKER_STACK_USED ((size_t)8 << 10)

struct aio {
    int event_fd;
    unsigned depth;
    unsigned limit;     /* workers at most */
    unsigned in_flight; /* accepted and not reaped: the caller's */
    struct io *ready;   /* taken from done, in order: the caller's */
    pthread_attr_t attr;

    _Alignas(64) pthread_mutex_t lock; /* guards these: */
    struct io *first;                  /* queued, linked by io->next */
    struct io **last;
    unsigned queued;
    unsigned idle;   /* workers asleep and not told to wake */
    unsigned waking; /* workers told to wake that have not looked at the queue since */
    unsigned coming; /* workers asked for that are not there yet */
    unsigned workers;
    bool stop;

    sem_t vacancies; /* once for each worker that the hirer is to create */
    pthread_t hirer;
    bool has_hirer;
    unsigned hired; /* threads[0..hired) are there: the hirer's */

    _Alignas(64) _Atomic unsigned tokens;  /* one for each worker told to wake; they sleep on it */
    _Alignas(64) struct io *_Atomic done; /* finished, newest first */

    pthread_t threads[WORKERS_MAX];
};

/* ---- workers ---- */

static void futex(_Atomic unsigned *word, int op, unsigned value)
{
    (void)syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static void wake(struct aio *aio, unsigned n)
{
    atomic_fetch_add(&aio->tokens, n);
    futex(&aio->tokens, FUTEX_WAKE, n);
}

/* Sleep until there is a token, and take it. */
static void take_token(struct aio *aio)
{
    for (;;) {
        unsigned tokens = atomic_load(&aio->tokens);
        if (tokens == 0)
            futex(&aio->tokens, FUTEX_WAIT, 0);
        else if (atomic_compare_exchange_weak(&aio->tokens, &tokens, tokens - 1))
            return;
    }
}

/* The next io to run, sleeping until there is one; NULL to end. */
static struct io *next_io(struct aio *aio)
{
    struct io *io = NULL;
    pthread_mutex_lock(&aio->lock);
    while (aio->first == NULL && !aio->stop) {
        aio->idle++;
        pthread_mutex_unlock(&aio->lock);
        take_token(aio);
        pthread_mutex_lock(&aio->lock);
        aio->waking--;
    }
    io = aio->first;
    if (io != NULL) {
        aio->first = io->next;
        if (aio->first == NULL)
            aio->last = &aio->first;
        aio->queued--;
    }
    pthread_mutex_unlock(&aio->lock);
    return io;
}

static void finish(struct aio *aio, struct io *io)
{
    struct io *head = atomic_load_explicit(&aio->done, memory_order_relaxed);
    do
        io->next = head;
    while (!atomic_compare_exchange_weak_explicit(&aio->done, &head, io, memory_order_release,
                                                  memory_order_relaxed));
    /* From here on io may be the caller's again. */
    if (head == NULL)
        (void)eventfd_write(aio->event_fd, 1);
}

static void *work(void *argument)
{
    struct aio *aio = argument;
    struct io *io;
    pthread_setname_np(pthread_self(), "aiofs-io");
    populate_stack(WORKER_STACK_USED);
    pthread_mutex_lock(&aio->lock);
    aio->coming--;
    pthread_mutex_unlock(&aio->lock);
    while ((io = next_io(aio)) != NULL) {
        io->result = io_perform(io);
        finish(aio, io);
    }
    return NULL;
}

/* One more worker, which counts as coming. -errno: it does not come. */
static int hire(struct aio *aio)
{
    int error = pthread_create(&aio->threads[aio->hired], &aio->attr, work, aio);
    if (error == 0) {
        aio->hired++;
        return 0;
    }
    pthread_mutex_lock(&aio->lock);
    aio->coming--;
    aio->workers--;
    pthread_mutex_unlock(&aio->lock);
    return -error;
}

static bool is_stopping(struct aio *aio)
{
    pthread_mutex_lock(&aio->lock);
    bool stop = aio->stop;
    pthread_mutex_unlock(&aio->lock);
    return stop;
}

static void *hire_workers(void *argument)
{
    struct aio *aio = argument;
    pthread_setname_np(pthread_self(), "aiofs-hirer");
    for (;;) {
        while (sem_wait(&aio->vacancies) < 0)
            ; /* EINTR */
        if (is_stopping(aio))
            return NULL;
        (void)hire(aio); /* refused: those that are there do it, and the next submit asks again */
    }
}

/* ---- the caller's side ---- */

static int threads_probe(char *why, size_t size)
{
    (void)why;
    (void)size;
    return 0;
}

/* Workers start with every signal blocked: signals are for the threads that know what to do with them. */
static int set_attributes(pthread_attr_t *attr)
{
    sigset_t all;
    sigfillset(&all);
    int error = pthread_attr_init(attr);
    if (error == 0)
        error = pthread_attr_setstacksize(attr, WORKER_STACK_BYTES);
    if (error == 0)
        error = pthread_attr_setsigmask_np(attr, &all);
    return -error;
}

static void free_all(struct aio *aio)
{
    pthread_mutex_destroy(&aio->lock);
    sem_destroy(&aio->vacancies);
    pthread_attr_destroy(&aio->attr);
    close(aio->event_fd);
    free(aio);
}

static void threads_close(struct aio *aio)
{
    pthread_mutex_lock(&aio->lock);
    assert(aio->queued == 0);
    aio->stop = true;
    pthread_mutex_unlock(&aio->lock);
    if (aio->has_hirer) {
        sem_post(&aio->vacancies);
        pthread_join(aio->hirer, NULL);
    }
    pthread_mutex_lock(&aio->lock);
    unsigned idle = aio->idle;
    aio->waking += idle;
    aio->idle = 0;
    pthread_mutex_unlock(&aio->lock);
    wake(aio, idle);
    for (unsigned i = 0; i < aio->hired; i++)
        pthread_join(aio->threads[i], NULL);
    free_all(aio);
}

static int threads_open(struct aio **out, unsigned depth)
{
    struct aio *aio = aligned_alloc(64, sizeof *aio);
    if (aio == NULL)
        return -ENOMEM;
    *aio = (struct aio){.depth = depth, .limit = depth < WORKERS_MAX ? depth : WORKERS_MAX};
    aio->last = &aio->first;
    aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->event_fd < 0) {
        int error = -errno;
        free(aio);
        return error;
    }
    pthread_mutex_init(&aio->lock, NULL);
    sem_init(&aio->vacancies, 0, 0);
    int error = set_attributes(&aio->attr);
    /* The first worker now: with one there, a later refusal of another only costs speed. */
    aio->workers = aio->coming = 1;
    if (error == 0)
        error = hire(aio);
    if (error < 0) {
        free_all(aio);
        return error;
    }
    aio->has_hirer = pthread_create(&aio->hirer, &aio->attr, hire_workers, aio) == 0;
    if (!aio->has_hirer)
        aio->limit = 1;
    *out = aio;
    return 0;
}

static int threads_attach(struct aio *aio, int fd)
{
    (void)aio;
    (void)fd;
    return 0;
}

static void threads_detach(struct aio *aio, int file)
{
    (void)aio;
    (void)file;
}

/* How many sleepers to wake for what is queued; asks for more workers when there are too few. Lock held.
 * Workers that are on their way count: a busy one may empty the queue before they come. */
static unsigned call_workers(struct aio *aio, unsigned *asked)
{
    *asked = 0;
    if (aio->queued <= aio->waking)
        return 0;
    unsigned missing = aio->queued - aio->waking;
    unsigned woken = missing < aio->idle ? missing : aio->idle;
    aio->idle -= woken;
    aio->waking += woken;
    for (missing -= woken; missing > aio->coming && aio->workers < aio->limit; (*asked)++) {
        aio->coming++;
        aio->workers++;
    }
    return woken;
}

static int threads_submit(struct aio *aio, struct io *const *ios, int n)
{
    if ((unsigned)n > aio->depth - aio->in_flight)
        n = (int)(aio->depth - aio->in_flight);
    if (n <= 0)
        return 0;
    for (int i = 0; i < n; i++)
        ios[i]->next = i + 1 < n ? ios[i + 1] : NULL;
    aio->in_flight += (unsigned)n;
    pthread_mutex_lock(&aio->lock);
    *aio->last = ios[0];
    aio->last = &ios[n - 1]->next;
    aio->queued += (unsigned)n;
    unsigned asked, woken = call_workers(aio, &asked);
    pthread_mutex_unlock(&aio->lock);
    if (woken > 0)
        wake(aio, woken);
    for (; asked > 0; asked--)
        sem_post(&aio->vacancies);
    return n;
}

static int threads_event_fd(struct aio *aio)
{
    return aio->event_fd;
}

static struct io *reversed(struct io *list)
{
    struct io *result = NULL;
    while (list != NULL) {
        struct io *next = list->next;
        list->next = result;
        result = list;
        list = next;
    }
    return result;
}

static int threads_reap(struct aio *aio, struct io **out, int max)
{
    int n = 0;
    while (n < max) {
        if (aio->ready == NULL) {
            /* The load first: an exchange would take the cache line from the workers on every look. */
            if (atomic_load_explicit(&aio->done, memory_order_relaxed) == NULL)
                break;
            aio->ready = reversed(atomic_exchange_explicit(&aio->done, NULL, memory_order_acquire));
        }
        out[n++] = aio->ready;
        aio->ready = aio->ready->next;
    }
    aio->in_flight -= (unsigned)n;
    return n;
}

static int threads_cancel(struct aio *aio, struct io *io)
{
    int result = -EALREADY;
    pthread_mutex_lock(&aio->lock);
    for (struct io **link = &aio->first; *link != NULL; link = &(*link)->next) {
        if (*link != io)
            continue;
        *link = io->next;
        if (io->next == NULL)
            aio->last = link;
        aio->queued--;
        aio->in_flight--;
        result = 0;
        break;
    }
    pthread_mutex_unlock(&aio->lock);
    return result;
}

const struct driver driver_threads = {
    .name = "threads",
    .description = "a pool of threads: every operation, on every Linux",
    .operations = OPERATIONS_ALL,
    .probe = threads_probe,
    .open = threads_open,
    .attach = threads_attach,
    .detach = threads_detach,
    .submit = threads_submit,
    .event_fd = threads_event_fd,
    .reap = threads_reap,
    .cancel = threads_cancel,
    .close = threads_close,
};
