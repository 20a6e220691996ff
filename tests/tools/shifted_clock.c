/* A wall clock that a test may set while a process runs: the real one, plus the seconds in the file that the variable
 * SHIFTED_CLOCK names. Preloaded, it stands before those functions of libc that tell the wall clock, or wait for a
 * time on it. Such waits go by in slices and may end too early, as these waits always may, so that they see the clock
 * jump as the kernel's own would. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SLICE_NS = 50 * 1000 * 1000, SECOND_NS = 1000 * 1000 * 1000, EARLIEST_WALL_CLOCK_S = 1000 * 1000 * 1000 };

static long (*libc_syscall)(long, ...);
static int (*libc_cond_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*libc_sem_timedwait)(sem_t *, const struct timespec *);
static int (*libc_clock_gettime)(clockid_t, struct timespec *);
static const volatile int64_t *shift_s;

__attribute__((constructor)) static void begin(void) {
    libc_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    libc_syscall = dlsym(RTLD_NEXT, "syscall");
    libc_sem_timedwait = dlsym(RTLD_NEXT, "sem_timedwait");
    libc_cond_timedwait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"); /* x86 has an older one, too */
    if (libc_cond_timedwait == NULL)
        libc_cond_timedwait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shift_s, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(file);
    shift_s = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (shift_s == NULL) /* another library's constructor */
        begin();
    int status = libc_clock_gettime(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *shift_s;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now != NULL)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

static int is_past(const struct timespec *deadline) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec != deadline->tv_sec ? now.tv_sec > deadline->tv_sec : now.tv_nsec >= deadline->tv_nsec;
}

/* The end of this slice on the kernel's wall clock; `deadline` is on ours. */
static struct timespec slice_end(const struct timespec *deadline) {
    struct timespec end;
    libc_clock_gettime(CLOCK_REALTIME, &end);
    if (is_past(deadline))
        return end;
    end.tv_nsec += SLICE_NS;
    if (end.tv_nsec >= SECOND_NS) {
        end.tv_nsec -= SECOND_NS;
        end.tv_sec++;
    }
    return end;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    if (deadline->tv_sec < EARLIEST_WALL_CLOCK_S) /* on the monotonic clock, as the condition was made */
        return libc_cond_timedwait(condition, mutex, deadline);
    struct timespec end = slice_end(deadline);
    int status = libc_cond_timedwait(condition, mutex, &end);
    return status == ETIMEDOUT && !is_past(deadline) ? 0 : status;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
    for (;;) {
        struct timespec end = slice_end(deadline);
        int status = libc_sem_timedwait(semaphore, &end);
        if (status == 0 || errno != ETIMEDOUT || is_past(deadline))
            return status;
    }
}

long syscall(long number, ...) {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if (libc_syscall == NULL)
        begin();
    int waits_until = number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && a[3] != 0;
    if (!waits_until || !(a[1] & FUTEX_CLOCK_REALTIME))
        return libc_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    const struct timespec *deadline = (const struct timespec *)a[3];
    struct timespec end = slice_end(deadline);
    long status = libc_syscall(number, a[0], a[1], a[2], &end, a[4], a[5]);
    if (status < 0 && errno == ETIMEDOUT && !is_past(deadline))
        errno = EINTR;
    return status;
}
