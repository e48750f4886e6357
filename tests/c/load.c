/*
 * Loading, call by call: st_load_start, st_load_next, st_load_recycle, st_load_progress, st_load_cancel, st_load_free.
 * What arrives is in load_bytes.c, staged memory in load_staging.c, checksums in load_verify.c, several threads and
 * processes in load_threads.c, what the system refuses in load_fault.c and load_system.c.
 */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { UNTOUCHED = 0xaa, MIB = 1 << 20 };

static st_checkpoint *open_model(void) {
    return fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
}

/* --- st_load_start ------------------------------------------------------------------------------------------------ */

static void load_start_needs_its_pointers(void) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_SMALL, NULL, 0, NULL, 0, 0};
    st_load *load = (st_load *)&request;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(NULL, &request, 1, NULL, &load, &err));
    CHECK(!load);
    load = (st_load *)&request;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, NULL, 1, NULL, &load, &err));
    CHECK(!load);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, &request, 1, NULL, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, &request, SIZE_MAX, NULL, &load, &err));
    CHECK(st_load_start(checkpoint, NULL, 1, NULL, &load, NULL) == ST_ERR_INVALID_ARGUMENT);
    st_close(checkpoint);
}

/* Starts with one request, and ends at once. */
static st_status try_options(const st_load_options *options) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_SMALL, NULL, 0, NULL, 0, 0};
    st_load *load = (st_load *)&request;
    const st_status status = st_load_start(checkpoint, &request, 1, options, &load, &err);
    CHECK((status == ST_OK) == (load != NULL));
    st_load_free(load);
    st_close(checkpoint);
    return status;
}

static void load_start_checks_its_options(void) {
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    OK(try_options(&options));
#define REFUSES(field, value)                                   \
    do {                                                        \
        options = (st_load_options)ST_LOAD_OPTIONS_INIT;        \
        options.field = (value);                                \
        FAILS(ST_ERR_INVALID_ARGUMENT, try_options(&options)); \
    } while (0)
#define TAKES(field, value)                              \
    do {                                                 \
        options = (st_load_options)ST_LOAD_OPTIONS_INIT; \
        options.field = (value);                         \
        OK(try_options(&options));                       \
    } while (0)
    REFUSES(flags, 2);
    REFUSES(flags, 1u << 31);
    REFUSES(flags, 3);
    TAKES(flags, ST_LOAD_IN_ORDER);
    REFUSES(engine, -1);
    REFUSES(engine, 3);
    REFUSES(engine, ST_ENGINE_DIRECT | ST_ENGINE_URING);
    REFUSES(engine, 16);
    REFUSES(reserved, 1);
    TAKES(workers, 1);
    TAKES(workers, 65);
    TAKES(workers, UINT32_MAX);
    TAKES(queue_depth, 1);
    TAKES(queue_depth, 1024);
    REFUSES(queue_depth, 1025);
    REFUSES(queue_depth, UINT32_MAX);
    TAKES(block_bytes, 64 << 10);
    TAKES(block_bytes, 64 * MIB);
    TAKES(block_bytes, (64 << 10) + 4096);
    REFUSES(block_bytes, (64 << 10) - 4096);
    REFUSES(block_bytes, 4096);
    REFUSES(block_bytes, 1);
    REFUSES(block_bytes, (64 << 10) + 512);
    REFUSES(block_bytes, 64 * MIB + 4096);
    REFUSES(block_bytes, SIZE_MAX);
    TAKES(staging_bytes, 64 << 10);
    TAKES(staging_bytes, (64 << 10) + 1);
    REFUSES(staging_bytes, (64 << 10) - 1);
    REFUSES(staging_bytes, 1);
    TAKES(piece_bytes, 4096);
    TAKES(piece_bytes, 4097);
    TAKES(piece_bytes, SIZE_MAX);
    REFUSES(piece_bytes, 4095);
    REFUSES(piece_bytes, 1);
    TAKES(over_read, 1);
    TAKES(over_read, UINT32_MAX - 1);
    TAKES(over_read, ST_OVER_READ_NONE);
#undef REFUSES
#undef TAKES
}

static void load_start_knows_older_and_newer_options(void) {
    struct {
        st_load_options options;
        uint64_t more;
    } newer = {ST_LOAD_OPTIONS_INIT, 0};
    newer.options.struct_size = sizeof(newer);
    OK(try_options(&newer.options));
    newer.more = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, try_options(&newer.options));
    static const size_t none[] = {0, 1, 8, sizeof(st_load_options) - 1, 1 << 20, SIZE_MAX};
    for (size_t i = 0; i < LEN(none); i++) {
        newer.options.struct_size = none[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, try_options(&newer.options));
    }
}

static void load_start_checks_the_size_of_given_staging(void) {
    static unsigned char staging[64 << 10];
    static const size_t too_small[] = {0, 1, sizeof(staging) - 1};
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.staging = staging;
    for (size_t i = 0; i < LEN(too_small); i++) {
        options.staging_bytes = too_small[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, try_options(&options));
    }
    options.staging_bytes = SIZE_MAX;
    FAILS(ST_ERR_INVALID_ARGUMENT, try_options(&options));
    options.staging_bytes = sizeof(staging);
    OK(try_options(&options));
}

/* What st_tensor_read refuses, with the same words. */
static void load_start_refuses_what_reading_refuses(void) {
    static const st_range beyond = {0, 301}, reversed = {5, 4}, after = {301, ST_END};
    static const st_range huge = {UINT64_MAX - 1, UINT64_MAX - 1};
    static const st_range second[] = {{0, ST_END}, {0, 257}}, many[] = {{0, 1}, {0, 1}, {0, 1}};
    const st_request wrong[] = {
        {L_LEN, NULL, 0, NULL, 0, 1},    {SIZE_MAX, NULL, 0, NULL, 0, 1},  {L_LEN, &beyond, 1, NULL, 0, 1},
        {L_MATRIX, &beyond, 1, NULL, 0, 1}, {L_MATRIX, &reversed, 1, NULL, 0, 1}, {L_MATRIX, &after, 1, NULL, 0, 1},
        {L_MATRIX, &huge, 1, NULL, 0, 1},   {L_MATRIX, second, 2, NULL, 0, 1},    {L_MATRIX, many, 3, NULL, 0, 1},
        {L_SCALAR, many, 1, NULL, 0, 1},
    };
    static unsigned char dst[8000];
    st_checkpoint *checkpoint = open_model();
    for (size_t i = 0; i < LEN(wrong); i++) {
        char message[sizeof(err.message)];
        const st_request *one = &wrong[i];
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_read(checkpoint, one->index, one->ranges, one->rank, NULL, 0, &err));
        strcpy(message, err.message);
        /* One is enough, among many that are right. */
        st_request requests[5];
        for (size_t k = 0; k < LEN(requests); k++)
            requests[k] = (st_request){k, NULL, 0, NULL, 0, 0};
        requests[3] = *one;
        requests[1] = (st_request){L_TAIL, NULL, 0, dst, sizeof(dst), 0};
        memset(dst, UNTOUCHED, sizeof(dst));
        const size_t threads = test_entries("/proc/self/task");
        st_load *load = (st_load *)dst;
        FAILS(ST_ERR_OUT_OF_RANGE, st_load_start(checkpoint, requests, LEN(requests), NULL, &load, &err));
        CHECK(!load && strcmp(message, err.message) == 0);
        CHECK(test_entries("/proc/self/task") == threads);
        for (size_t k = 0; k < sizeof(dst); k++)
            CHECK(dst[k] == UNTOUCHED);
    }
    st_close(checkpoint);
}

static void load_start_refuses_destinations_that_are_too_small(void) {
    static unsigned char dst[8000];
    static const st_range half = {0, 500};
    st_checkpoint *checkpoint = open_model();
    st_load *load;
    st_request request = {L_TAIL, NULL, 0, dst, sizeof(dst) - 1, 0};
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_load_start(checkpoint, &request, 1, NULL, &load, &err));
    CHECK(!load);
    SAYS("8000");
    SAYS("7999");
    SAYS("\"tail\"");
    request.dst_len = 0;
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_load_start(checkpoint, &request, 1, NULL, &load, &err));
    request = (st_request){L_TAIL, &half, 1, dst, 3999, 0};
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_load_start(checkpoint, &request, 1, NULL, &load, &err));
    request.dst_len = SIZE_MAX;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, &request, 1, NULL, &load, &err));
    request.dst_len = 4000;
    loading_all(checkpoint, &request, 1, NULL);
    /* Nothing fits anywhere. */
    request = (st_request){L_EMPTY, NULL, 0, dst, 0, 0};
    loading_all(checkpoint, &request, 1, NULL);
    st_close(checkpoint);
}

static void load_start_refuses_destinations_that_overlap(void) {
    enum { SIZE = 8000 };
    static unsigned char memory[64 << 10];
    static const size_t seconds[] = {0, 1, SIZE - 1};
    st_checkpoint *checkpoint = open_model();
    st_load *load;
    st_request requests[] = {{L_TAIL, NULL, 0, memory, SIZE, 0},
                             {L_SMALL, NULL, 0, NULL, 0, 0},
                             {L_TAIL, NULL, 0, NULL, SIZE, 0}};
    for (size_t i = 0; i < LEN(seconds); i++)
        for (int swap = 0; swap < 2; swap++) {
            requests[swap ? 2 : 0].dst = memory;
            requests[swap ? 0 : 2].dst = memory + seconds[i];
            FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, requests, LEN(requests), NULL, &load, &err));
            CHECK(!load);
        }
    /* Side by side is not on top of one another. */
    requests[0].dst = memory + SIZE;
    requests[2].dst = memory;
    loading_all(checkpoint, requests, LEN(requests), NULL);
    /* Nor may they lie in the staging memory. */
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    static unsigned char around[(64 << 10) + 2 * SIZE];
    options.staging = around + SIZE;
    options.staging_bytes = 64 << 10;
    const size_t inside[] = {1, SIZE, SIZE + 100, SIZE + (64 << 10) - 1};
    requests[2].dst = NULL;
    for (size_t i = 0; i < LEN(inside); i++) {
        requests[0].dst = around + inside[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, requests, LEN(requests), &options, &load, &err));
        CHECK(!load);
    }
    requests[0].dst = around;
    loading_all(checkpoint, requests, LEN(requests), &options);
    requests[0].dst = around + SIZE + (64 << 10);
    loading_all(checkpoint, requests, LEN(requests), &options);
    st_close(checkpoint);
}

static void load_start_refuses_engines_that_cannot_read(void) {
    const st_request request = {L_SMALL, NULL, 0, NULL, 0, 0};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&loading_model, fixture_storages[s], 0);
        for (size_t e = 0; e < LEN(loading_every_engine); e++) {
            if (loading_fits(fixture_storages[s], loading_every_engine[e]))
                continue;
            const st_load_options options = loading_by(loading_every_engine[e]);
            st_load *load;
            FAILS(ST_ERR_UNSUPPORTED, st_load_start(checkpoint, &request, 1, &options, &load, &err));
            CHECK(!load);
        }
        st_close(checkpoint);
    }
}

static void requests_and_options_are_read_by_start_only(void) {
    st_checkpoint *checkpoint = open_model();
    st_range range = {100, 900};
    st_request request = {L_TAIL, &range, 1, NULL, 0, 5};
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    st_load *load;
    st_loaded loaded;
    OK(st_load_start(checkpoint, &request, 1, &options, &load, &err));
    unsigned char expected[6400];
    OK(st_tensor_read(checkpoint, L_TAIL, &range, 1, expected, sizeof(expected), &err));
    memset(&range, 0xff, sizeof(range));
    memset(&request, 0xff, sizeof(request));
    memset(&options, 0xff, sizeof(options));
    OK(st_load_next(load, -1, &loaded, &err));
    CHECK(loaded.tag == 5 && loaded.nbytes == sizeof(expected) && memcmp(loaded.data, expected, sizeof(expected)) == 0);
    st_load_free(load);
    st_close(checkpoint);
}

static void nothing_is_done_at_once(void) {
    st_checkpoint *checkpoint = open_model();
    const size_t threads = test_entries("/proc/self/task");
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading it = loading_of(checkpoint, NULL, 0);
        loading_start(&it, &options);
        st_loaded loaded;
        CHECK(loading_next(&it, INT64_MAX, &loaded) == ST_DONE && loading_next(&it, 5, &loaded) == ST_DONE);
        st_progress progress;
        CHECK(st_load_progress(it.load, &progress) == ST_OK);
        CHECK(progress.bytes_total == 0 && progress.bytes_read == 0 && progress.engines == 0);
        /* Never more threads than there is work for. */
        CHECK(progress.workers == 0);
        test_threads_end(threads);
        loading_end(&it);
        loading_free(&it);
    }
    st_close(checkpoint);
}

static void empty_requests_are_delivered(void) {
    static const st_range nothing = {3, 3};
    unsigned char dst[1];
    const st_request requests[] = {{L_EMPTY, NULL, 0, NULL, 0, 1},
                                   {L_EMPTY, NULL, 0, dst, sizeof(dst), 2},
                                   {L_LARGE, &nothing, 1, NULL, 0, 3},
                                   {L_LARGE, &nothing, 1, dst, 0, 4}};
    st_checkpoint *checkpoint = open_model();
    for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER; flags++) {
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.flags = flags;
        options.piece_bytes = 4096;
        dst[0] = UNTOUCHED;
        loading_all(checkpoint, requests, LEN(requests), &options);
        CHECK(dst[0] == UNTOUCHED);
    }
    st_close(checkpoint);
}

/* --- st_load_next ------------------------------------------------------------------------------------------------- */

static void load_next_needs_its_pointers(void) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_SMALL, NULL, 0, NULL, 0, 0};
    loading it = loading_of(checkpoint, &request, 1);
    loading_start(&it, NULL);
    st_loaded loaded;
    memset(&loaded, 0x55, sizeof(loaded));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_next(NULL, 0, &loaded, &err));
    CHECK(loaded.request == ST_ALL && loaded.index == ST_ALL && !loaded.data);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_next(it.load, 0, NULL, &err));
    /* Nothing is lost by it. */
    loading_end(&it);
    loading_free(&it);
    st_close(checkpoint);
}

/* In whatever order the requests are given. */
static void in_order_is_the_order_of_the_requests(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[3 * L_LEN];
    for (size_t i = 0; i < LEN(requests); i++)
        requests[i] = (st_request){(i * 7 + 3) % L_LEN, NULL, 0, NULL, 0, i};
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (int small = 0; small < 2; small++) {
            st_load_options options = loading_by(loading_engines[e]);
            options.flags = ST_LOAD_IN_ORDER;
            options.staging_bytes = small ? 64 << 10 : 0;
            loading_all(checkpoint, requests, LEN(requests), &options);
        }
    st_close(checkpoint);
}

/* What is staged waits in order behind what has a place of its own, and the other way round. */
static void in_order_with_destinations_between(void) {
    st_checkpoint *checkpoint = open_model();
    static unsigned char large[1024 * 768 * 4], rows[64 * 40000];
    const st_request requests[] = {{L_ROWS, NULL, 0, rows, sizeof(rows), 0}, {L_ODD, NULL, 0, NULL, 0, 1},
                                   {L_LARGE, NULL, 0, large, sizeof(large), 2}, {L_EMPTY, NULL, 0, NULL, 0, 3},
                                   {L_LARGE, NULL, 0, NULL, 0, 4}, {L_SCALAR, NULL, 0, NULL, 0, 5}};
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.flags = ST_LOAD_IN_ORDER;
    options.staging_bytes = 64 << 10;
    loading_all(checkpoint, requests, LEN(requests), &options);
    st_close(checkpoint);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void timeouts(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    static const int64_t limits[] = {0, 3, 1000000000, INT64_MAX, -1, INT64_MIN};
    for (size_t i = 0; i < LEN(limits); i++) {
        loading_start(&it, NULL);
        st_loaded loaded;
        st_status status;
        while ((status = loading_next(&it, limits[i], &loaded)) != ST_DONE) {
            /* Not to wait is not to be told of anything wrong. */
            CHECK(status == ST_OK || (status == ST_TIMEOUT && limits[i] >= 0 && limits[i] < 1000));
            if (status == ST_OK)
                loading_recycle(&it, &loaded);
        }
        loading_end(&it);
    }
    loading_free(&it);
    st_close(checkpoint);
}

/* A load that can deliver nothing more before something is recycled: the first piece of two is held. */
static loading stuck(st_checkpoint *checkpoint, const st_request *request, st_loaded *held) {
    loading it = loading_of(checkpoint, request, 1);
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.staging_bytes = 64 << 10;
    loading_start(&it, &options);
    st_status status = ST_OK;
    /* It may hold several pieces. */
    for (size_t n = 0; status == ST_OK; n++) {
        CHECK(n < 64);
        status = loading_next(&it, -1, &held[n]);
        if (status != ST_OK)
            held[n].buffer = 0;
    }
    CHECK(status == ST_ERR_STAGING_FULL && held[0].buffer);
    return it;
}

static void full_staging_is_told_and_mended(void) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_LARGE, NULL, 0, NULL, 0, 9};
    st_loaded held[64], loaded;
    loading it = stuck(checkpoint, &request, held);
    for (int again = 0; again < 3; again++)
        CHECK(loading_next(&it, -1, &loaded) == ST_ERR_STAGING_FULL);
    /* Who says for how long is told of nothing but the time. */
    CHECK(loading_next(&it, 0, &loaded) == ST_TIMEOUT);
    const double start = now();
    CHECK(loading_next(&it, 30, &loaded) == ST_TIMEOUT);
    CHECK(now() - start >= 0.03);
    /* What was delivered is still there. */
    size_t at = 0;
    for (size_t n = 0; held[n].buffer; at += held[n].nbytes, n++)
        CHECK(memcmp(held[n].data, it.expected[0] + at, held[n].nbytes) == 0);
    for (size_t n = 0; held[n].buffer; n++)
        loading_recycle(&it, &held[n]);
    loading_end(&it);
    loading_free(&it);
    st_close(checkpoint);
}

/* --- st_load_progress --------------------------------------------------------------------------------------------- */

static void load_progress_needs_its_pointers(void) {
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_SMALL, NULL, 0, NULL, 0, 0};
    st_load *load;
    st_progress progress;
    OK(st_load_start(checkpoint, &request, 1, NULL, &load, &err));
    CHECK(st_load_progress(NULL, &progress) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_load_progress(load, NULL) == ST_ERR_INVALID_ARGUMENT);
    st_load_free(load);
    st_close(checkpoint);
}

static void load_progress_only_grows(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        st_load_options options = loading_by(loading_engines[e]);
        options.staging_bytes = 256 << 10;
        loading_start(&it, &options);
        st_progress last = {0}, next;
        uint64_t total = 0, staged = 0;
        for (size_t i = 0; i < it.n; i++)
            total += it.sizes[i];
        st_status status;
        do {
            CHECK(st_load_progress(it.load, &next) == ST_OK);
            CHECK(next.bytes_total == total && next.items_total == it.n && next.workers <= 64);
            CHECK(next.bytes_done >= last.bytes_done && next.bytes_done <= total);
            CHECK(next.items_done >= last.items_done && next.items_done == it.ended);
            CHECK(next.bytes_read >= last.bytes_read && next.bytes_read >= staged);
            CHECK((next.engines & last.engines) == last.engines && (next.engines & it.engines) == it.engines);
            last = next;
            st_loaded loaded;
            status = loading_next(&it, -1, &loaded);
            if (status == ST_OK) {
                staged += loaded.nbytes;
                loading_recycle(&it, &loaded);
            }
        } while (status == ST_OK);
        CHECK(status == ST_DONE);
        loading_end(&it);
    }
    loading_free(&it);
    st_close(checkpoint);
}

/* At least one thread, and never more than 64, than was asked for, or than there is work for. */
static void workers_are_as_many_as_is_useful(void) {
    static const uint32_t asked[] = {0, 1, 2, 5, 64, 65, 1000, UINT32_MAX};
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    const size_t n = loading_whole(checkpoint, requests, L_LEN), before = test_entries("/proc/self/task");
    for (size_t i = 0; i < LEN(asked); i++)
        for (int few = 0; few < 2; few++) {
            st_load_options options = ST_LOAD_OPTIONS_INIT;
            options.workers = asked[i];
            options.block_bytes = 64 << 10;
            options.staging_bytes = 64 << 10;
            st_load *load;
            st_progress progress;
            OK(st_load_start(checkpoint, requests + (few ? L_SMALL : 0), few ? 1 : n, &options, &load, &err));
            CHECK(st_load_progress(load, &progress) == ST_OK);
            const size_t threads = test_entries("/proc/self/task") - before;
            CHECK(threads <= 64 && progress.workers <= 64 && (!asked[i] || progress.workers <= asked[i]));
            CHECK(!few || progress.workers <= 1);
            CHECK(threads <= progress.workers + 1);
            st_load_free(load);
            test_threads_end(before);
        }
    st_close(checkpoint);
}

/* --- st_load_recycle ---------------------------------------------------------------------------------------------- */

static void load_recycle_knows_what_is_not_its_own(void) {
    st_checkpoint *checkpoint = open_model();
    static unsigned char dst[8000];
    const st_request requests[] = {{L_TAIL, NULL, 0, NULL, 0, 0}, {L_TAIL, NULL, 0, dst, sizeof(dst), 1}};
    loading it = loading_of(checkpoint, requests, LEN(requests));
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.flags = ST_LOAD_IN_ORDER;
    loading_start(&it, &options);
    st_loaded staged, given, garbage;
    CHECK(loading_next(&it, -1, &staged) == ST_OK && loading_next(&it, -1, &given) == ST_OK);
    CHECK(staged.buffer != 0 && given.buffer == 0);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(NULL, &staged, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(it.load, NULL, &err));
    static const uint64_t flips[] = {1, 1u << 31, 1ull << 32, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < LEN(flips); i++) {
        garbage = staged;
        garbage.buffer ^= flips[i];
        if (garbage.buffer)
            FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(it.load, &garbage, &err));
    }
    /* What has nothing to hand back: a dst, ends, times that were over. */
    OK(st_load_recycle(it.load, &given, &err));
    CHECK(loading_next(&it, 0, &garbage) == ST_DONE);
    OK(st_load_recycle(it.load, &garbage, &err));
    loading_recycle(&it, &staged);
    loading_end(&it);
    /* Nor is one of another load, whether that has gone or runs beside this one. */
    const st_loaded gone = staged;
    loading other = loading_of(checkpoint, requests, 1);
    st_loaded others;
    loading_start(&it, &options);
    loading_start(&other, &options);
    CHECK(loading_next(&it, -1, &staged) == ST_OK && loading_next(&other, -1, &others) == ST_OK);
    CHECK(staged.buffer != 0 && others.buffer != 0);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(it.load, &gone, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(it.load, &others, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(other.load, &staged, &err));
    CHECK(loading_is_right(&it, &staged) && loading_is_right(&other, &others));
    loading_recycle(&it, &staged);
    loading_recycle(&other, &others);
    loading_end(&it);
    loading_end(&other);
    loading_free(&other);
    loading_free(&it);
    st_close(checkpoint);
}

/* --- st_load_cancel, st_load_free --------------------------------------------------------------------------------- */

static void load_cancel_lasts(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    st_load_cancel(NULL);
    for (size_t taken = 0; taken < 4; taken++) {
        loading_start(&it, NULL);
        st_loaded held[4], loaded;
        for (size_t i = 0; i < taken; i++)
            CHECK(loading_next(&it, -1, &held[i]) == ST_OK);
        st_load_cancel(it.load);
        st_load_cancel(it.load);
        static const int64_t limits[] = {-1, 0, 100, INT64_MAX};
        for (size_t i = 0; i < LEN(limits); i++)
            CHECK(loading_next(&it, limits[i], &loaded) == ST_ERR_CANCELLED);
        st_progress progress;
        CHECK(st_load_progress(it.load, &progress) == ST_OK && progress.items_total == it.n);
        /* What was delivered stays until the end. */
        for (size_t i = 0; i < taken; i++)
            CHECK(loading_is_right(&it, &held[i]));
        if (taken % 2)
            for (size_t i = 0; i < taken; i++)
                loading_recycle(&it, &held[i]);
        st_load_free(it.load);
    }
    it.load = NULL;
    loading_free(&it);
    st_close(checkpoint);
}

static void load_free_without_taking_anything(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    const size_t n = loading_whole(checkpoint, requests, L_LEN);
    st_load_free(NULL);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (int i = 0; i < 5; i++) {
            const st_load_options options = loading_by(loading_engines[e]);
            st_load *load;
            OK(st_load_start(checkpoint, requests, n, &options, &load, &err));
            st_load_free(load);
        }
    st_close(checkpoint);
}

static void the_checkpoint_may_be_closed_before(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&loading_model, fixture_storages[s], 0);
        st_request requests[L_LEN];
        loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
        const size_t descriptors = test_entries("/proc/self/fd");
        st_load *load;
        OK(st_load_start(checkpoint, requests, it.n, NULL, &load, &err));
        st_close(checkpoint);
        st_loaded loaded;
        st_status status;
        size_t ended = 0;
        while ((status = st_load_next(load, -1, &loaded, &err)) == ST_OK) {
            CHECK(loading_is_right(&it, &loaded));
            ended += loaded.last;
            OK(st_load_recycle(load, &loaded, &err));
        }
        CHECK(status == ST_DONE && ended == it.n);
        st_load_free(load);
        CHECK(test_entries("/proc/self/fd") == descriptors - (fixture_storages[s] != ST_STORAGE_MEMORY));
        it.load = NULL;
        loading_free(&it);
    }
}

static const test_case cases[] = {
    CASE(load_start_needs_its_pointers),
    CASE(load_start_checks_its_options),
    CASE(load_start_knows_older_and_newer_options),
    CASE(load_start_checks_the_size_of_given_staging),
    CASE(load_start_refuses_what_reading_refuses),
    CASE(load_start_refuses_destinations_that_are_too_small),
    CASE(load_start_refuses_destinations_that_overlap),
    CASE(load_start_refuses_engines_that_cannot_read),
    CASE(requests_and_options_are_read_by_start_only),
    CASE(nothing_is_done_at_once),
    CASE(empty_requests_are_delivered),
    CASE(load_next_needs_its_pointers),
    CASE(in_order_is_the_order_of_the_requests),
    CASE(in_order_with_destinations_between),
    CASE(timeouts),
    CASE(full_staging_is_told_and_mended),
    CASE(load_progress_needs_its_pointers),
    CASE(load_progress_only_grows),
    CASE(workers_are_as_many_as_is_useful),
    CASE(load_recycle_knows_what_is_not_its_own),
    CASE(load_cancel_lasts),
    CASE(load_free_without_taking_anything),
    CASE(the_checkpoint_may_be_closed_before),
};
TEST_MAIN(cases)
