#define _POSIX_C_SOURCE 200809L

#include "watch.h"

#include "engines.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR_WIDTH = 30, STOP = SIGUSR1 };

struct watch {
    pthread_t thread;
    st_task *task; /* or NULL, and a load */
    st_load *load;
    const char *what;
    int draws;
    atomic_int interrupts;
    sigset_t waits_for, before;
};

static st_status progress_of(const watch *watch, st_progress *progress) {
    return watch->load ? st_load_progress(watch->load, progress) : st_task_progress(watch->task, progress);
}

static void cancel(const watch *watch) {
    if (watch->load)
        st_load_cancel(watch->load);
    else
        st_task_cancel(watch->task);
}

static void draw(const watch *watch) {
    st_progress progress;
    if (progress_of(watch, &progress) != ST_OK || progress.bytes_total == 0)
        return; /* it has not begun */
    const double done = (double)progress.bytes_done / (double)progress.bytes_total;
    const double part = done < 1 ? done : 1;
    char bar[BAR_WIDTH + 1];
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(part * BAR_WIDTH));
    bar[BAR_WIDTH] = 0;
    char names[ENGINE_NAMES];
    engine_names(progress.engines, names);
    fprintf(stderr, "\r%s [%s] %3d%%, %.2f GB/s%s%s\033[K", watch->what, bar, (int)(part * 100),
            (double)progress.bytes_per_second / 1e9, names[0] ? " by " : "", names);
}

static void *run(void *argument) {
    watch *watch = argument;
    const struct timespec pause = {0, 100 * 1000 * 1000};
    for (;;) {
        /* Not sigwait, which would not draw; the signals are blocked, so that they wait for this thread. */
        const int signal_number = sigtimedwait(&watch->waits_for, NULL, &pause);
        if (signal_number == STOP)
            break;
        if (signal_number > 0 && watch->interrupts++ > 0)
            _exit(128 + signal_number); /* the call does not end: a disk that hangs */
        if (signal_number > 0)
            cancel(watch);
        else if (errno == EAGAIN && watch->draws)
            draw(watch);
    }
    if (watch->draws)
        fputs("\r\033[K", stderr);
    return NULL;
}

static void block_signals(sigset_t *signals, sigset_t *before) {
    sigemptyset(signals);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, STOP);
    pthread_sigmask(SIG_BLOCK, signals, before);
}

void watch_prepare(void) {
    sigset_t signals;
    block_signals(&signals, NULL);
}

static watch *begin(st_task *task, st_load *load, const char *what) {
    watch *watch = calloc(1, sizeof(*watch));
    if (!watch)
        return NULL;
    watch->task = task;
    watch->load = load;
    watch->what = what;
    watch->draws = isatty(STDERR_FILENO);
    block_signals(&watch->waits_for, &watch->before);
    if (pthread_create(&watch->thread, NULL, run, watch) != 0) {
        pthread_sigmask(SIG_SETMASK, &watch->before, NULL);
        free(watch);
        return NULL;
    }
    return watch;
}

watch *watch_begin(st_task *task, const char *what) {
    return begin(task, NULL, what);
}

watch *watch_begin_load(st_load *load, const char *what) {
    return begin(NULL, load, what);
}

int watch_interrupted(const watch *watch) {
    return watch && watch->interrupts > 0;
}

void watch_end(watch *watch) {
    if (!watch)
        return;
    pthread_kill(watch->thread, STOP); /* for that thread alone; it waits if the thread is busy */
    pthread_join(watch->thread, NULL);
    pthread_sigmask(SIG_SETMASK, &watch->before, NULL);
    free(watch);
}
