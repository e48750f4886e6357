/* Loading with several threads and processes, and what is left when a load ends at any moment: nothing. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 6, MIB = 1 << 20 };

static st_checkpoint *open_model(void) {
    return fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
}

/* --- several threads take ----------------------------------------------------------------------------------------- */

/* What threads that take from one load have in common. Pieces go to any of them, so nobody sees their order. */
typedef struct takers {
    const loading *expected;
    st_load *load;
    int64_t timeout_ms;
    atomic_size_t ended, bytes;
} takers;

static void *take(void *argument) {
    takers *shared = argument;
    const loading *expected = shared->expected;
    st_loaded loaded;
    for (;;) {
        const st_status status = st_load_next(shared->load, shared->timeout_ms, &loaded, &err);
        if (status == ST_DONE)
            return NULL;
        /* The others may hold everything for a moment. */
        if (status == ST_TIMEOUT || status == ST_ERR_STAGING_FULL)
            continue;
        CHECK(status == ST_OK && loaded.request < expected->n);
        CHECK(loaded.offset + loaded.nbytes <= expected->sizes[loaded.request]);
        CHECK(loading_is_right(expected, &loaded));
        shared->bytes += loaded.nbytes;
        shared->ended += loaded.last;
        OK(st_load_recycle(shared->load, &loaded, &err));
    }
}

static void taken_by_threads(const loading *expected, const st_load_options *options, int64_t timeout_ms) {
    takers shared = {.expected = expected, .timeout_ms = timeout_ms};
    OK(st_load_start(expected->checkpoint, expected->requests, expected->n, options, &shared.load, &err));
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, take, &shared) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    size_t bytes = 0;
    for (size_t i = 0; i < expected->n; i++)
        bytes += expected->sizes[i];
    CHECK(shared.ended == expected->n && shared.bytes == bytes);
    st_load_free(shared.load);
}

/* 200 requests, most of them small. */
enum { MANY = 200 };

static void ask_for_many(st_request *requests) {
    for (size_t i = 0; i < MANY; i++)
        requests[i] = (st_request){i % 40 == 0 ? L_LARGE : i % L_LARGE, NULL, 0, NULL, 0, i};
}

static void threads_take_from_one_load(void) {
    static const int64_t timeouts[] = {-1, 0, 20, INT64_MAX};
    static st_request requests[MANY];
    ask_for_many(requests);
    st_checkpoint *checkpoint = open_model();
    loading expected = loading_of(checkpoint, requests, test_is_instrumented() ? MANY / 4 : MANY);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (size_t t = 0; t < LEN(timeouts); t++) {
            st_load_options options = loading_by(loading_engines[e]);
            taken_by_threads(&expected, &options, timeouts[t]);
            options.flags = ST_LOAD_IN_ORDER;
            options.staging_bytes = MIB;
            options.piece_bytes = 100000;
            taken_by_threads(&expected, &options, timeouts[t]);
        }
    loading_free(&expected);
    st_close(checkpoint);
}

/* --- several loads ------------------------------------------------------------------------------------------------ */

static void *load_everything(void *argument) {
    st_checkpoint *checkpoint = argument;
    st_request requests[L_LEN];
    const size_t n = loading_whole(checkpoint, requests, L_LEN);
    for (int round = 0; round < 3; round++)
        for (size_t e = 0; e < LEN(loading_engines); e++) {
            st_load_options options = loading_by(loading_engines[e]);
            options.staging_bytes = MIB;
            loading_all(checkpoint, requests, n, &options);
        }
    return NULL;
}

static void loads_side_by_side(void) {
    st_checkpoint *checkpoint = open_model();
    pthread_t threads[3];
    for (size_t i = 0; i < LEN(threads); i++)
        CHECK(pthread_create(&threads[i], NULL, load_everything, checkpoint) == 0);
    for (size_t i = 0; i < LEN(threads); i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    st_close(checkpoint);
}

/* By one thread, in turns. */
static void two_loads_in_turns(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    const size_t n = loading_whole(checkpoint, requests, L_LEN);
    loading first = loading_of(checkpoint, requests, n), second = loading_of(checkpoint, requests, n);
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        st_load_options options = loading_by(loading_engines[e]);
        loading_start(&first, &options);
        options.piece_bytes = 50000;
        loading_start(&second, &options);
        st_loaded loaded;
        while (loading_next(&second, -1, &loaded) == ST_OK) {
            loading_recycle(&second, &loaded);
            if (loading_next(&first, 0, &loaded) == ST_OK)
                loading_recycle(&first, &loaded);
        }
        loading_end(&second);
        loading_end(&first);
    }
    loading_free(&first);
    loading_free(&second);
    st_close(checkpoint);
}

/* --- an end at any moment ----------------------------------------------------------------------------------------- */

typedef struct waiting {
    st_load *load;
    st_status status;
} waiting;

/* Takes without recycling, until the load has nothing more to give, and waits on. */
static void *wait_for_more(void *argument) {
    waiting *self = argument;
    st_loaded loaded;
    while ((self->status = st_load_next(self->load, INT64_MAX, &loaded, &err)) == ST_OK)
        ;
    return NULL;
}

static void cancel_wakes_who_waits(void) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_LARGE, NULL, 0, NULL, 0, 0};
    for (int round = 0; round < 20; round++) {
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.staging_bytes = 64 << 10;
        waiting them[THREADS];
        pthread_t threads[THREADS];
        OK(st_load_start(checkpoint, &request, 1, &options, &them[0].load, &err));
        for (size_t i = 0; i < THREADS; i++) {
            them[i].load = them[0].load;
            CHECK(pthread_create(&threads[i], NULL, wait_for_more, &them[i]) == 0);
        }
        usleep((useconds_t)(round * 500));
        st_load_cancel(them[0].load);
        for (size_t i = 0; i < THREADS; i++) {
            CHECK(pthread_join(threads[i], NULL) == 0);
            CHECK(them[i].status == ST_ERR_CANCELLED);
        }
        st_load_free(them[0].load);
    }
    st_close(checkpoint);
}

/* VmRSS, in MiB. */
static size_t memory_mib(void) {
    char line[256];
    size_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof(line), status))
        sscanf(line, "VmRSS: %zu", &kib);
    fclose(status);
    CHECK(kib);
    return kib >> 10;
}

/* Takes some, or none, and ends it. */
static void end_at_random(st_checkpoint *checkpoint, const st_request *requests, size_t n, int32_t engine) {
    st_load_options options = loading_by(engine);
    options.staging_bytes = 64 << 10 << loading_random(8);
    options.workers = (uint32_t)loading_random(5);
    options.flags = loading_random(2) ? ST_LOAD_IN_ORDER : 0;
    options.piece_bytes = loading_random(2) ? 100000 : 0;
    st_load *load;
    st_loaded loaded;
    OK(st_load_start(checkpoint, requests, n, &options, &load, &err));
    for (size_t left = loading_random(20); left > 0; left--)
        if (st_load_next(load, (int64_t)loading_random(3), &loaded, &err) == ST_OK && loading_random(4))
            OK(st_load_recycle(load, &loaded, &err));
    if (loading_random(2))
        usleep((useconds_t)loading_random(1000));
    if (loading_random(2)) {
        st_load_cancel(load);
        CHECK(st_load_next(load, -1, &loaded, &err) == ST_ERR_CANCELLED);
    }
    st_load_free(load);
}

static void a_thousand_ends(void) {
    const int rounds = test_is_instrumented() ? 40 : 1000;
    static unsigned char large[1024 * 768 * 4];
    const char *path = fixture_write("ends.safetensors", &loading_model);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    st_request requests[4 * L_LEN];
    for (size_t i = 0; i < LEN(requests); i++)
        requests[i] = (st_request){i % L_LEN, NULL, 0, NULL, 0, i};
    requests[L_LARGE].dst = large;
    requests[L_LARGE].dst_len = sizeof(large);
    size_t threads = 0, descriptors = 0, mib = 0;
    for (int round = 0; round < rounds; round++) {
        if (round % 50 == 0)
            loading_drop(path);
        int32_t engine = loading_engines[loading_random(LEN(loading_engines))];
        if (!loading_fits(ST_STORAGE_AUTO, engine))
            engine = ST_ENGINE_AUTO;
        end_at_random(checkpoint, requests, LEN(requests), engine);
        if (round == rounds / 10) {
            threads = test_entries("/proc/self/task");
            descriptors = test_entries("/proc/self/fd");
            mib = memory_mib();
        }
    }
    test_threads_end(test_is_instrumented() ? test_entries("/proc/self/task") : threads);
    CHECK(test_entries("/proc/self/fd") == descriptors);
    /* A leak of the staging memory, or of one block per load, would be far more. */
    CHECK(test_is_instrumented() || memory_mib() <= mib + 16);
    st_close(checkpoint);
}

/* Descriptors are as many as before once a load is freed, and threads are gone once all is read. */
static void nothing_is_left(void) {
    const size_t threads = test_entries("/proc/self/task");
    st_checkpoint *checkpoint = open_model();
    const size_t descriptors = test_entries("/proc/self/fd");
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading_start(&it, &options);
        loading_drain(&it);
        test_threads_end(threads);
        st_load_free(it.load);
        CHECK(test_entries("/proc/self/fd") == descriptors);
        /* Not even for a moment. */
        loading_start(&it, &options);
        st_load_free(it.load);
        test_threads_end(threads);
        CHECK(test_entries("/proc/self/fd") == descriptors);
    }
    it.load = NULL;
    loading_free(&it);
    st_close(checkpoint);
}

/* --- processes ---------------------------------------------------------------------------------------------------- */

/* The child has its own copy of everything but the threads; the parent's load goes on. */
static void fork_in_the_middle(void) {
    test_forks_beside_threads();
    if (test_is_emulated())
        SKIP("the emulator does not wipe pages in a child");
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    static unsigned char rows[64 * 40000];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    requests[L_ROWS].dst = rows;
    requests[L_ROWS].dst_len = sizeof(rows);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (size_t taken = 0; taken < 4; taken++) {
            st_load_options options = loading_by(loading_engines[e]);
            options.staging_bytes = 256 << 10;
            loading_start(&it, &options);
            st_loaded loaded;
            for (size_t i = 0; i < taken; i++) {
                CHECK(loading_next(&it, -1, &loaded) == ST_OK);
                loading_recycle(&it, &loaded);
            }
            fflush(NULL);
            const pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                /* It is told so, and may free it. */
                FAILS(ST_ERR_UNSUPPORTED, st_load_next(it.load, -1, &loaded, &err));
                CHECK(loaded.request == ST_ALL);
                st_load_free(it.load);
                test_end_child();
            }
            loading_end(&it);
            int status = -1;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
    loading_free(&it);
    st_close(checkpoint);
}

/* A child that was forked while a load ran has loads of its own. */
static void a_load_in_a_child(void) {
    test_forks_beside_threads();
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    loading_start(&it, NULL);
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (size_t e = 0; e < LEN(loading_engines); e++) {
            const st_load_options options = loading_by(loading_engines[e]);
            loading_all(checkpoint, requests, L_LEN, &options);
        }
        test_end_child();
    }
    loading_end(&it);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    loading_free(&it);
    st_close(checkpoint);
}

/* Without a word to the load: what it has of it is nobody else's. */
static void a_child_that_ends_by_exit(void) {
    if (test_is_instrumented())
        SKIP("what the parent's threads hold looks like a leak of the child");
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    loading_start(&it, NULL);
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        exit(0);
    loading_end(&it);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    loading_free(&it);
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(threads_take_from_one_load),
    CASE(loads_side_by_side),
    CASE(two_loads_in_turns),
    CASE(cancel_wakes_who_waits),
    CASE(a_thousand_ends),
    CASE(nothing_is_left),
    CASE(fork_in_the_middle),
    CASE(a_load_in_a_child),
    CASE(a_child_that_ends_by_exit),
};
TEST_MAIN(cases)
