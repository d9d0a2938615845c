/* vigil.c -- see vigil.h. */
#include "vigil.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

#define US INT64_C(1000)
#define STACK_BYTES ((size_t)64 << 10)

/* After the last look. Longer than from one look to the next, at the pace at which there are looks. */
#define LAST_NS (1000 * US)
/* So often it asks where the caller is, which takes it 20-40 us: a trial of looking lasts 8 ms, and it is to be part of it. */
#define ASK_NS (1000 * US)
#define SPINS 64

/* The core on which a thread runs, or ran last; -1: not to be seen. proc_pid_stat(5): the 39th field; the 2nd is in brackets,
 * and may hold any. */
static int core_of(uint32_t pid)
{
    char path[32], text[1024], *at;
    ssize_t size;
    int fd;

    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return -1;
    text[size] = '\0';
    at = strrchr(text, ')');
    for (int field = 2; at && field < 39; field++)
        at = strchr(at + 1, ' ');
    return at ? atoi(at + 1) : -1;
}

/* Run on a core from now on. Returns whether we may. */
static int move_to(int core)
{
    cpu_set_t cores;

    if (core < 0 || core >= CPU_SETSIZE)
        return 0;
    CPU_ZERO(&cores);
    CPU_SET((size_t)core, &cores);
    return sched_setaffinity(0, sizeof cores, &cores) == 0;
}

static void pause_core(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int is_over(struct vigil *vigil)
{
    return clock_ns() >= atomic_load_explicit(&vigil->until_ns, memory_order_relaxed) ||
           atomic_load_explicit(&vigil->ends, memory_order_relaxed);
}

/* Be there, until it is over or it is time to ask again. The loop may come here: then it is to have the core. */
static void stay(struct vigil *vigil, int core, int64_t until_ns)
{
    while (!is_over(vigil) && clock_ns() < until_ns &&
           atomic_load_explicit(&vigil->loop_core, memory_order_relaxed) != core)
        for (int i = 0; i < SPINS; i++)
            pause_core();
}

static void keep_awake(struct vigil *vigil)
{
    const struct timespec a_moment = {.tv_nsec = ASK_NS};

    while (!is_over(vigil)) {
        int core = core_of(atomic_load(&vigil->pid));

        if (core != atomic_load(&vigil->loop_core) && move_to(core))
            stay(vigil, core, clock_ns() + ASK_NS);
        else
            nanosleep(&a_moment, NULL);
    }
}

static void *run(void *argument)
{
    const struct sched_param none = {0};
    struct vigil *vigil = argument;

    pthread_setname_np(pthread_self(), "aiofs-vigil");
    if (pthread_setschedparam(pthread_self(), SCHED_IDLE, &none))
        return NULL; /* never in anybody's way */
    for (;;) {
        while (sem_wait(&vigil->begins) < 0)
            ; /* EINTR */
        if (atomic_load(&vigil->ends))
            return NULL;
        keep_awake(vigil);
        atomic_store(&vigil->is_awake, 0);
    }
}

void vigil_start(struct vigil *vigil)
{
    pthread_attr_t attr;

    sem_init(&vigil->begins, 0, 0);
    if (pthread_attr_init(&attr))
        return;
    vigil->exists =
        !pthread_attr_setstacksize(&attr, STACK_BYTES) && !pthread_create(&vigil->thread, &attr, run, vigil);
    pthread_attr_destroy(&attr);
}

void vigil_stop(struct vigil *vigil)
{
    atomic_store(&vigil->ends, 1);
    if (vigil->exists) {
        sem_post(&vigil->begins);
        pthread_join(vigil->thread, NULL);
    }
    sem_destroy(&vigil->begins);
}

void vigil_keep(struct vigil *vigil, int64_t now_ns, uint32_t pid)
{
    if (!vigil->exists || !pid)
        return;
    atomic_store_explicit(&vigil->until_ns, now_ns + LAST_NS, memory_order_relaxed);
    atomic_store_explicit(&vigil->loop_core, sched_getcpu(), memory_order_relaxed);
    atomic_store_explicit(&vigil->pid, pid, memory_order_relaxed);
    if (!atomic_load_explicit(&vigil->is_awake, memory_order_relaxed) && !atomic_exchange(&vigil->is_awake, 1))
        sem_post(&vigil->begins);
}
