#define _GNU_SOURCE

#include "failing.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_ALLOCATIONS = 5000, SECONDS = 60, NONE_FAILED = 9 };

static atomic_long failing_at, allocations;
static atomic_bool all_that_follow, has_failed;

void failing_start(long n, bool from_then_on) {
    atomic_store(&has_failed, false);
    atomic_store(&allocations, 0);
    atomic_store(&all_that_follow, from_then_on);
    atomic_store(&failing_at, n);
}

bool failing_stop(void) {
    atomic_store(&failing_at, 0);
    return failing_has_failed();
}

bool failing_has_failed(void) {
    return atomic_load(&has_failed);
}

static bool tried_at;

/* ST_TEST_TRACE=1 shows who wanted what fails; addr2line knows the places. */
static void trace(size_t size) {
    static _Thread_local bool inside;
    if (inside || !tried_at)
        return;
    inside = true;
    void *frames[24];
    char line[64];
    const int len = snprintf(line, sizeof(line), "an allocation of %zu bytes fails:\n", size);
    if (write(STDERR_FILENO, line, (size_t)len) == len)
        backtrace_symbols_fd(frames, backtrace(frames, (int)LEN(frames)), STDERR_FILENO);
    inside = false;
}

static bool fails(size_t size) {
    const long at = atomic_load(&failing_at);
    if (at == 0 || size < FAILING_FROM)
        return false;
    const long number = atomic_fetch_add(&allocations, 1) + 1;
    if (number != at && !(number > at && atomic_load(&all_that_follow)))
        return false;
    atomic_store(&has_failed, true);
    trace(size);
    errno = ENOMEM;
    return true;
}

#ifdef __GLIBC__

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    return fails(size) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return fails(count * size) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    return fails(size) ? NULL : __libc_realloc(old, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = fails(size) ? NULL : __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return fails(size) ? NULL : __libc_memalign(alignment, size);
}

void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset) {
    if (fails(len))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, len, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset) {
    return mmap(at, len, protection, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *with) {
    if (fails(FAILING_FROM))
        return EAGAIN;
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
    return create(thread, attributes, run, with);
}

void failing_needs_malloc(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers bring their own malloc");
    tried_at = test_setting("ST_TEST_TRACE") != NULL;
}

#else

void failing_needs_malloc(void) {
    (void)fails;
    SKIP("needs glibc");
}

#endif

static struct {
    bool (*run)(long n, bool from_then_on);
    long n;
    bool from_then_on;
} now;

static void run_once(void) {
    alarm(SECONDS);
    if (!now.run(now.n, now.from_then_on))
        _exit(NONE_FAILED);
}

void failing_each(bool (*run)(long n, bool from_then_on)) {
    now.run = run;
    /* Loaded once, so that a trace needs no memory. */
    void *frame;
    backtrace(&frame, 1);
    for (int rest = 0; rest < 2; rest++) {
        now.from_then_on = rest;
        int status = 0;
        for (now.n = 1; status == 0 && now.n <= MOST_ALLOCATIONS; now.n++)
            status = test_in_child(run_once);
        const long n = now.n - 1;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != NONE_FAILED) {
            fprintf(stderr, "allocation %ld%s failed: ", n, rest ? " and all that follow it" : "");
            if (WIFSIGNALED(status))
                fprintf(stderr, "the program ended by %s\n", strsignal(WTERMSIG(status)));
            else
                fprintf(stderr, "status %d\n", WEXITSTATUS(status));
            CHECK(!"no allocation that fails ends the program");
        }
        CHECK(n > 1);
    }
}
