#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() atomic_signal_fence(memory_order_seq_cst)
#endif

enum { MAX_THREADS = 256, SPINS_BEFORE_SLEEP = 2000, SPINS_BEFORE_YIELD = 500 };

/* `ticket` is the number of the job (upper half) and the next task in it (lower half), so that a thread that comes
 * late can never take a task of another job than the one whose fields it has read. */
static struct {
    _Atomic uint64_t ticket;
    _Atomic(Task) task;
    _Atomic(const void *) context;
    _Atomic int64_t count, unfinished, threads, sleepers;
} job;

static pthread_mutex_t call_lock = PTHREAD_MUTEX_INITIALIZER, sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t job_published = PTHREAD_COND_INITIALIZER;
static int64_t started; /* under call_lock */

static void work(uint64_t number) {
    Task task = atomic_load(&job.task);
    const void *context = atomic_load(&job.context);
    uint64_t count = (uint64_t)atomic_load(&job.count), ticket = atomic_load(&job.ticket);
    while (ticket >> 32 == number && (ticket & UINT32_MAX) < count) {
        if (!atomic_compare_exchange_weak(&job.ticket, &ticket, ticket + 1)) continue;
        task(context, (int64_t)(ticket & UINT32_MAX));
        atomic_fetch_sub(&job.unfinished, 1);
        ticket = atomic_load(&job.ticket);
    }
}

static uint64_t next_job(uint64_t done) {
    for (int spin = 0; spin < SPINS_BEFORE_SLEEP; spin++) {
        uint64_t number = atomic_load(&job.ticket) >> 32;
        if (number != done) return number;
        PAUSE();
    }
    uint64_t number;
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&job.sleepers, 1);
    while ((number = atomic_load(&job.ticket) >> 32) == done) pthread_cond_wait(&job_published, &sleep_lock);
    atomic_fetch_sub(&job.sleepers, 1);
    pthread_mutex_unlock(&sleep_lock);
    return number;
}

static void *helper(void *index) {
    for (uint64_t done = 0;;) {
        done = next_job(done);
        if ((intptr_t)index < atomic_load(&job.threads)) work(done);
    }
    return NULL;
}

/* A forked child has none of the threads, and whoever held a lock is not there to release it. */
static void forget(void) {
    pthread_mutex_init(&call_lock, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&job_published, NULL);
    atomic_store(&job.sleepers, 0);
    started = 0;
}

static void start(int64_t threads) {
    static int is_registered;
    if (!is_registered) is_registered = pthread_atfork(NULL, NULL, forget) == 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (pthread_t thread; started < threads - 1; started++) {
        if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)(started + 1))) return;
        pthread_detach(thread);
    }
}

static void publish(Task task, const void *context, int64_t count, int64_t threads) {
    /* Closed first: a late helper of the last job must not take what it reads of this one for more tasks of that. */
    uint64_t number = atomic_fetch_or(&job.ticket, UINT32_MAX) >> 32;
    atomic_store(&job.task, task);
    atomic_store(&job.context, context);
    atomic_store(&job.count, count);
    atomic_store(&job.unfinished, count);
    atomic_store(&job.threads, threads);
    atomic_store(&job.ticket, (number + 1) << 32);
    if (!atomic_load(&job.sleepers)) return;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&job_published);
    pthread_mutex_unlock(&sleep_lock);
}

void share(Task task, const void *context, int64_t count, int64_t threads) {
    if (count <= 1 || threads <= 1 || pthread_mutex_trylock(&call_lock)) {
        for (int64_t index = 0; index < count; index++) task(context, index);
        return;
    }
    start(threads);
    publish(task, context, count, threads);
    work(atomic_load(&job.ticket) >> 32);
    for (int spin = 0; atomic_load(&job.unfinished); spin++) {
        if (spin < SPINS_BEFORE_YIELD) PAUSE();
        else sched_yield(); /* a helper may be waiting for this very core */
    }
    pthread_mutex_unlock(&call_lock);
}
