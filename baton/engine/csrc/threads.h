/* Shares numbered tasks among threads that stay around. */
#ifndef BATON_THREADS_H
#define BATON_THREADS_H

#include <stdint.h>

typedef void (*Task)(const void *context, int64_t index);

/* Runs task(context, 0) to task(context, count - 1), each once, on at most `threads` threads, this one included, and
 * returns when all have ended. Whoever is free takes the next, so a thread that the system has put aside delays nobody
 * but the task that it holds. Where another call is under way, or threads cannot be started, this one does all. */
void share(Task task, const void *context, int64_t count, int64_t threads);

#endif
