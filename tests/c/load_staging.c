/* Loading: memory for what has no place of its own, and pieces; also when the caller holds on to them. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096, LEAST = 64 << 10, MIB = 1 << 20 };

static st_checkpoint *open_model(void) {
    return fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
}

/* For each engine: all tensors, staged, by these options; the same over a buffer. */
static void by_every_engine(const st_load_options *given) {
    for (int memory = 0; memory < 2; memory++) {
        const int32_t storage = memory ? ST_STORAGE_MEMORY : ST_STORAGE_AUTO;
        st_checkpoint *checkpoint = fixture_open(&loading_model, storage, 0);
        st_request requests[L_LEN];
        loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
        for (size_t e = 0; e < LEN(loading_every_engine); e++)
            if (loading_fits(storage, loading_every_engine[e])) {
                st_load_options options = *given;
                options.engine = loading_every_engine[e];
                loading_start(&it, &options);
                loading_end(&it);
            }
        loading_free(&it);
        st_close(checkpoint);
    }
}

static void the_least_staging(void) {
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    for (options.flags = 0; options.flags <= ST_LOAD_IN_ORDER; options.flags++)
        for (options.staging_bytes = LEAST; options.staging_bytes < LEAST + 3 * PAGE; options.staging_bytes += PAGE - 1)
            by_every_engine(&options);
}

/* Between pages that cannot be touched, at every alignment. */
static void staging_of_the_callers(void) {
    static const size_t sizes[] = {LEAST, LEAST + 1, LEAST + PAGE, 300001, 8 * MIB};
    for (size_t s = 0; s < LEN(sizes); s++)
        for (int at_end = 0; at_end < 2; at_end++) {
            if (test_is_instrumented() && s % 2)
                continue;
            unsigned char *staging = loading_guarded(sizes[s], at_end);
            st_load_options options = ST_LOAD_OPTIONS_INIT;
            options.staging = staging;
            options.staging_bytes = sizes[s];
            by_every_engine(&options);
            options.block_bytes = 64 << 10;
            options.piece_bytes = 20000;
            by_every_engine(&options);
            loading_unguard(staging, sizes[s]);
        }
}

/* Staging memory, once lent, is not touched any more after the load. */
static void staging_is_given_back_by_free(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    const size_t n = loading_whole(checkpoint, requests, L_LEN);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (size_t taken = 0; taken < 5; taken++) {
            unsigned char *staging = loading_guarded(MIB, false);
            st_load_options options = loading_by(loading_engines[e]);
            options.staging = staging;
            options.staging_bytes = MIB;
            st_load *load;
            st_loaded loaded;
            OK(st_load_start(checkpoint, requests, n, &options, &load, &err));
            for (size_t i = 0; i < taken; i++) {
                OK(st_load_next(load, -1, &loaded, &err));
                OK(st_load_recycle(load, &loaded, &err));
            }
            st_load_free(load);
            /* Whoever writes to it now gets a signal. */
            loading_unguard(staging, MIB);
        }
    st_close(checkpoint);
}

static void pieces(void) {
    static const size_t sizes[] = {PAGE, PAGE + 1, 10007, 1 << 16, MIB - 1, MIB, 100 * MIB};
    for (size_t s = 0; s < LEN(sizes); s++) {
        if (test_is_instrumented() && s % 3 != 1)
            continue;
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.piece_bytes = sizes[s];
        by_every_engine(&options);
        options.flags = ST_LOAD_IN_ORDER;
        options.staging_bytes = 128 << 10;
        by_every_engine(&options);
    }
}

/* Of slices, whose rows are shorter and longer than a piece. */
static void pieces_of_slices(void) {
    static const st_range columns[] = {{0, ST_END}, {10, 200}}, wide_columns[] = {{1, 63}, {100, 39000}};
    static const st_range thin_columns[] = {{0, ST_END}, {7, 8}}, rows = {1, 69999};
    const st_request requests[] = {{L_MATRIX, columns, 2, NULL, 0, 1},
                                   {L_ROWS, wide_columns, 2, NULL, 0, 2},
                                   {L_CUBE, thin_columns, 2, NULL, 0, 3},
                                   {L_ODD, &rows, 1, NULL, 0, 4}};
    st_checkpoint *checkpoint = open_model();
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (size_t piece = PAGE; piece < 2 * MIB; piece = piece * 5 + 3) {
            st_load_options options = loading_by(loading_engines[e]);
            options.piece_bytes = piece;
            loading_all(checkpoint, requests, LEN(requests), &options);
            options.staging_bytes = LEAST;
            loading_all(checkpoint, requests, LEN(requests), &options);
        }
    st_close(checkpoint);
}

/* Destinations are filled at once, and hold up nothing. */
static void destinations_are_not_in_pieces(void) {
    static unsigned char dst[1024 * 768 * 4];
    st_checkpoint *checkpoint = open_model();
    const st_request requests[] = {{L_LARGE, NULL, 0, dst, sizeof(dst), 1}, {L_LARGE, NULL, 0, NULL, 0, 2}};
    loading it = loading_of(checkpoint, requests, LEN(requests));
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.staging_bytes = LEAST;
    options.piece_bytes = PAGE;
    loading_start(&it, &options);
    loading_end(&it);
    CHECK(it.pieces >= 1 + sizeof(dst) / PAGE);
    loading_free(&it);
    st_close(checkpoint);
}

/* Nothing is written to what was delivered before it is recycled. */
static void staged_bytes_stay_until_recycled(void) {
    enum { HELD = 7 };
    st_checkpoint *checkpoint = open_model();
    st_request requests[4 * L_LEN];
    for (size_t i = 0; i < LEN(requests); i++)
        requests[i] = (st_request){i % L_LEN, NULL, 0, NULL, 0, i};
    loading it = loading_of(checkpoint, requests, LEN(requests));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        st_load_options options = loading_by(loading_engines[e]);
        options.piece_bytes = 30000;
        options.staging_bytes = HELD * 2 * 40000;
        loading_start(&it, &options);
        st_loaded held[HELD], next;
        size_t n = 0;
        st_status status;
        while ((status = loading_next(&it, -1, &next)) == ST_OK) {
            if (!next.buffer)
                continue;
            if (n == HELD) {
                /* Not in the order in which they came. */
                const size_t i = loading_random(HELD);
                CHECK(loading_is_right(&it, &held[i]));
                /* It is the caller's to write to. */
                memset(held[i].data, 0x77, held[i].nbytes);
                loading_recycle(&it, &held[i]);
                held[i] = held[--n];
            }
            held[n++] = next;
        }
        /* With this much held it may be that nothing more fits, but not before. */
        while (status == ST_ERR_STAGING_FULL && n > 0) {
            loading_recycle(&it, &held[--n]);
            if ((status = loading_next(&it, -1, &next)) == ST_OK)
                loading_recycle(&it, &next);
        }
        for (size_t i = 0; i < n; i++)
            CHECK(loading_is_right(&it, &held[i]));
        for (size_t i = 0; i < n; i++)
            loading_recycle(&it, &held[i]);
        loading_end(&it);
    }
    loading_free(&it);
    st_close(checkpoint);
}

/* With room for all, all of it can be held. */
static void everything_can_be_held(void) {
    st_checkpoint *checkpoint = open_model();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading_start(&it, &options);
        st_loaded all[L_LEN];
        for (size_t i = 0; i < L_LEN; i++) {
            CHECK(loading_next(&it, -1, &all[i]) == ST_OK);
            CHECK(all[i].last);
        }
        for (size_t i = 0; i < L_LEN; i++)
            CHECK(loading_is_right(&it, &all[i]));
        CHECK(loading_next(&it, -1, &all[0]) == ST_DONE);
        loading_end(&it);
    }
    loading_free(&it);
    st_close(checkpoint);
}

/* Aligned for its dtype where the tensor is in its file, and slices with gaps always. */
static void staged_bytes_are_aligned(void) {
    static const st_range columns[] = {{0, ST_END}, {3, 7}}, box[] = {{2, 30}, {5, 49}, {7, 9}}, rows = {1, 999};
    for (size_t shift = 0; shift < 64; shift += 3) {
        fixture shifted = loading_model;
        shifted.shift = shift;
        st_checkpoint *checkpoint = fixture_open(&shifted, ST_STORAGE_AUTO, 0);
        st_request requests[L_LEN + 3];
        const size_t n = loading_whole(checkpoint, requests, L_LEN);
        requests[n] = (st_request){L_MATRIX, columns, 2, NULL, 0, 1};
        requests[n + 1] = (st_request){L_CUBE, box, 3, NULL, 0, 1};
        requests[n + 2] = (st_request){L_TAIL, &rows, 1, NULL, 0, 1};
        loading it = loading_of(checkpoint, requests, LEN(requests));
        for (size_t e = 0; e < LEN(loading_engines); e++) {
            const st_load_options options = loading_by(loading_engines[e]);
            loading_start(&it, &options);
            st_loaded loaded;
            while (loading_next(&it, -1, &loaded) == ST_OK) {
                static const size_t aligned[L_LEN] = {8, 1, 1, 2, 4, 1, 8, 1, 4, 1, 2};
                st_tensor tensor;
                OK(st_tensor_info(checkpoint, loaded.index, &tensor, &err));
                const size_t wanted = aligned[loaded.index];
                const bool has_gaps = loaded.request == n || loaded.request == n + 1;
                if (has_gaps || tensor.file_offset % wanted == 0)
                    CHECK((uintptr_t)loaded.data % wanted == 0);
                loading_recycle(&it, &loaded);
            }
            loading_end(&it);
        }
        loading_free(&it);
        st_close(checkpoint);
    }
}

typedef struct recycling {
    loading *loading;
    st_loaded *held;
    size_t n;
} recycling;

static void *recycle_later(void *argument) {
    recycling *later = argument;
    usleep(50000);
    for (size_t i = 0; i < later->n; i++)
        loading_recycle(later->loading, &later->held[i]);
    return NULL;
}

/* Who gives a time, however long, waits for other threads to recycle. */
static void another_thread_recycles(void) {
    static const int64_t limits[] = {INT64_MAX, 60000};
    st_checkpoint *checkpoint = open_model();
    const st_request request = {L_LARGE, NULL, 0, NULL, 0, 9};
    for (size_t i = 0; i < LEN(limits); i++) {
        loading it = loading_of(checkpoint, &request, 1);
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.staging_bytes = LEAST;
        loading_start(&it, &options);
        for (int round = 0; round < 5; round++) {
            st_loaded held[64], loaded;
            recycling later = {&it, held, 0};
            while (loading_next(&it, -1, &held[later.n]) == ST_OK)
                CHECK(++later.n < LEN(held));
            CHECK(later.n > 0);
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, recycle_later, &later) == 0);
            CHECK(loading_next(&it, limits[i], &loaded) == ST_OK);
            CHECK(pthread_join(thread, NULL) == 0);
            loading_recycle(&it, &loaded);
        }
        loading_end(&it);
        loading_free(&it);
    }
    st_close(checkpoint);
}

/* Nothing is allocated beyond what the staged requests need. */
static void staging_is_no_larger_than_needed(void) {
    if (test_is_instrumented())
        SKIP("measures memory");
    static unsigned char dst[1024 * 768 * 4];
    st_checkpoint *checkpoint = open_model();
    const st_request requests[] = {{L_LARGE, NULL, 0, dst, sizeof(dst), 1}, {L_SMALL, NULL, 0, NULL, 0, 2}};
    const size_t n[] = {1, 2};
    for (size_t i = 0; i < LEN(n); i++) {
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        /* More than any machine has: it is a limit, and not asked for. */
        options.staging_bytes = SIZE_MAX / 4;
        loading_all(checkpoint, requests, n[i], &options);
    }
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(the_least_staging),
    CASE(staging_of_the_callers),
    CASE(staging_is_given_back_by_free),
    CASE(pieces),
    CASE(pieces_of_slices),
    CASE(destinations_are_not_in_pieces),
    CASE(staged_bytes_stay_until_recycled),
    CASE(everything_can_be_held),
    CASE(staged_bytes_are_aligned),
    CASE(another_thread_recycles),
    CASE(staging_is_no_larger_than_needed),
};
TEST_MAIN(cases)
