/*
 * For programs that make long calls: shows how far a task or a load is, in one line on stderr if that is a terminal, and lets Ctrl-C
 * cancel it.
 *
 * One thread does both: it waits for the signal, and draws whenever 100 ms have passed without one.
 */
#ifndef WATCH_H
#define WATCH_H

#include <safetensors_lazy.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct watch watch;

/*
 * Begins to watch; what is the word before the bar, and has to live as long. Nothing else in the program may handle SIGINT and SIGTERM
 * meanwhile: the first cancels the task, the second ends the program. NULL if there is no memory or no thread: then nobody watches.
 * Call it before other threads begin, and one at a time.
 */
watch *watch_begin(st_task *task, const char *what);

/* The same for a load that was started (its own threads do not count: they block signals). End it before the load is freed. */
watch *watch_begin_load(st_load *load, const char *what);

/*
 * For programs with libraries that begin threads before there is anything to watch: to be called first, so that these threads leave
 * signals alone. SIGINT and SIGTERM wait until something is watched.
 */
void watch_prepare(void);

/* Whether the task, or the load, has been cancelled by a signal. */
int watch_interrupted(const watch *watch);

/* Ends it, and wipes the line. NULL is fine. */
void watch_end(watch *watch);

#ifdef __cplusplus
}
#endif

#endif
