/* Loading: that the right bytes arrive in the right places, and nothing anywhere else. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, UNTOUCHED = 0xaa };

/* Calls a function for each engine over each storage, the model open that way. */
static void everywhere(void (*call)(st_checkpoint *, st_load_options *)) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&loading_model, fixture_storages[s], 0);
        for (size_t e = 0; e < LEN(loading_every_engine); e++)
            if (loading_fits(fixture_storages[s], loading_every_engine[e])) {
                st_load_options options = loading_by(loading_every_engine[e]);
                call(checkpoint, &options);
            }
        st_close(checkpoint);
    }
}

static void load_whole(st_checkpoint *checkpoint, st_load_options *options) {
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    loading_start(&it, options);
    loading_drain(&it);
    CHECK(it.failed == 0);
    const int32_t asked = options->engine;
    if (asked == ST_ENGINE_MEMORY)
        CHECK(it.engines == ST_ENGINE_MEMORY);
    else if (asked != ST_ENGINE_AUTO)
        CHECK(it.engines == (uint32_t)loading_engine_here(asked));
    st_progress progress;
    CHECK(st_load_progress(it.load, &progress) == ST_OK);
    CHECK(progress.bytes_read >= progress.bytes_done);
    loading_free(&it);
}

static void whole_tensors(void) {
    everywhere(load_whole);
}

/* Rows, columns, several ranges, nothing, and all of it by ranges. */
static void load_slices(st_checkpoint *checkpoint, st_load_options *options) {
    static const st_range all = {0, ST_END}, rows = {3, 200}, end = {299, ST_END}, nothing = {7, 7};
    static const st_range columns[] = {{0, ST_END}, {10, 200}}, one_column[] = {{0, 64}, {39999, 40000}};
    static const st_range wide_columns[] = {{1, 63}, {100, 39000}}, box[] = {{2, 30}, {5, 49}, {7, 9}};
    static const st_range planes[] = {{0, ST_END}, {49, 50}}, none[] = {{5, 20}, {50, ST_END}, {0, 60}};
    const st_request requests[] = {
        {L_MATRIX, &rows, 1, NULL, 0, 1}, {L_MATRIX, &end, 1, NULL, 0, 2},        {L_MATRIX, &nothing, 1, NULL, 0, 3},
        {L_MATRIX, columns, 2, NULL, 0, 4}, {L_ROWS, one_column, 2, NULL, 0, 5},  {L_ROWS, wide_columns, 2, NULL, 0, 6},
        {L_CUBE, box, 3, NULL, 0, 7},     {L_CUBE, planes, 2, NULL, 0, 8},        {L_CUBE, none, 3, NULL, 0, 9},
        {L_ODD, &rows, 1, NULL, 0, 10},   {L_SCALAR, &all, 0, NULL, 0, 11},       {L_LARGE, &all, 1, NULL, 0, 12},
        {L_EMPTY, &all, 1, NULL, 0, 13},
    };
    loading_all(checkpoint, requests, LEN(requests), options);
}

static void slices(void) {
    everywhere(load_slices);
}

/* Without slices of the same tensors beside them, which might be read one by one. */
static void load_each_slice(st_checkpoint *checkpoint, st_load_options *options) {
    static const st_range columns[] = {{0, ST_END}, {10, 200}}, wide_columns[] = {{1, 63}, {100, 39000}};
    static const st_range box[] = {{2, 30}, {5, 49}, {7, 9}}, rows = {100, 69999};
    const st_request requests[] = {{L_MATRIX, columns, 2, NULL, 0, 1},
                                   {L_ROWS, wide_columns, 2, NULL, 0, 2},
                                   {L_CUBE, box, 3, NULL, 0, 3},
                                   {L_ODD, &rows, 1, NULL, 0, 4}};
    loading_all(checkpoint, requests, LEN(requests), options);
    for (size_t i = 0; i < LEN(requests); i++)
        loading_all(checkpoint, &requests[i], 1, options);
}

static void slices_of_their_own(void) {
    everywhere(load_each_slice);
}

/* Every other element of the last dimension: more pieces than bytes between them. */
static void load_comb(st_checkpoint *checkpoint, st_load_options *options) {
    enum { TEETH = 60 };
    st_range ranges[TEETH / 2][3];
    st_request requests[TEETH / 2];
    for (size_t i = 0; i < LEN(requests); i++) {
        memcpy(ranges[i], (const st_range[]){{0, ST_END}, {0, ST_END}, {2 * i, 2 * i + 1}}, sizeof(ranges[i]));
        requests[i] = (st_request){L_CUBE, ranges[i], 3, NULL, 0, i};
    }
    loading_all(checkpoint, requests, LEN(requests), options);
}

static void combs(void) {
    everywhere(load_comb);
}

static uint64_t place_of(st_checkpoint *checkpoint, size_t index) {
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, index, &tensor, &err));
    return tensor.file_offset;
}

/* All tensors into one piece of memory, each at this offset from where a page begins, or from that of its file. */
static void load_shifted(st_checkpoint *checkpoint, const st_load_options *options, size_t shift, bool as_in_file) {
    enum { ROOM = 3 * PAGE };
    static unsigned char *arena;
    st_request requests[L_LEN];
    size_t sizes[L_LEN], size = ROOM;
    loading_whole(checkpoint, requests, L_LEN);
    for (size_t i = 0; i < L_LEN; i++)
        size += ROOM + (sizes[i] = loading_size(checkpoint, &requests[i]));
    if (!arena) {
        void *memory;
        CHECK(posix_memalign(&memory, PAGE, size) == 0);
        arena = memory;
    }
    memset(arena, UNTOUCHED, size);
    size_t at = PAGE;
    for (size_t i = 0; i < L_LEN; i++) {
        at = (at + PAGE - 1) / PAGE * PAGE + PAGE + shift + (as_in_file ? place_of(checkpoint, i) % PAGE : 0);
        requests[i].dst = arena + at;
        requests[i].dst_len = sizes[i];
        at += sizes[i];
    }
    CHECK(at <= size);
    loading_all(checkpoint, requests, L_LEN, options);
    for (size_t i = 0, from = 0; i <= L_LEN; i++) {
        const size_t to = i < L_LEN ? (size_t)((unsigned char *)requests[i].dst - arena) : size;
        for (; from < to; from++)
            CHECK(arena[from] == UNTOUCHED);
        from += i < L_LEN ? sizes[i] : 0;
    }
}

static void destinations_at_every_alignment(void) {
    static const size_t shifts[] = {0,  1,   2,          3,         4,        5,        6,       7, 8, 9,
                                    64, 512, PAGE - 512, PAGE - 64, PAGE - 9, PAGE - 2, PAGE - 1};
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (size_t s = 0; s < LEN(shifts); s++) {
            if (test_is_instrumented() && s % 5 != 1)
                continue;
            const st_load_options options = loading_by(loading_engines[e]);
            load_shifted(checkpoint, &options, shifts[s], false);
            load_shifted(checkpoint, &options, shifts[s], true);
        }
    st_close(checkpoint);
}

/* Destinations that end, or start, where memory does: nothing beside them can be touched, or asked of the system. */
static void destinations_at_the_end_of_memory(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_READ, 0);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (int at_end = 0; at_end < 2; at_end++) {
            st_request requests[L_LEN];
            loading_whole(checkpoint, requests, L_LEN);
            for (size_t i = 0; i < L_LEN; i++) {
                requests[i].dst_len = loading_size(checkpoint, &requests[i]);
                requests[i].dst = loading_guarded(requests[i].dst_len, at_end);
            }
            const st_load_options options = loading_by(loading_engines[e]);
            loading_all(checkpoint, requests, L_LEN, &options);
            for (size_t i = 0; i < L_LEN; i++)
                loading_unguard(requests[i].dst, requests[i].dst_len);
        }
    st_close(checkpoint);
}

static void destinations_of_more_than_is_needed(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        static unsigned char dst[3 * PAGE];
        memset(dst, UNTOUCHED, sizeof(dst));
        const st_request request = {L_TAIL, NULL, 0, dst, sizeof(dst), 0};
        const st_load_options options = loading_by(loading_engines[e]);
        loading_all(checkpoint, &request, 1, &options);
        for (size_t i = loading_size(checkpoint, &request); i < sizeof(dst); i++)
            CHECK(dst[i] == UNTOUCHED);
    }
    st_close(checkpoint);
}

/* What is asked for twice arrives twice. */
static void the_same_tensor_to_several_places(void) {
    static unsigned char first[8000], second[8000];
    static const st_range half = {500, 1000};
    const st_request requests[] = {{L_TAIL, NULL, 0, first, sizeof(first), 1},
                                   {L_TAIL, NULL, 0, second, sizeof(second), 2},
                                   {L_TAIL, NULL, 0, NULL, 0, 2},
                                   {L_TAIL, &half, 1, NULL, 0, 1},
                                   {L_TAIL, NULL, 0, NULL, 0, 3}};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&loading_model, fixture_storages[s], 0);
        for (size_t e = 0; e < LEN(loading_every_engine); e++)
            if (loading_fits(fixture_storages[s], loading_every_engine[e])) {
                const st_load_options options = loading_by(loading_every_engine[e]);
                memset(first, UNTOUCHED, sizeof(first));
                memset(second, UNTOUCHED, sizeof(second));
                loading_all(checkpoint, requests, LEN(requests), &options);
            }
        st_close(checkpoint);
    }
}

static void load_everything(st_checkpoint *checkpoint) {
    static st_request requests[64];
    const size_t n = loading_whole(checkpoint, requests, LEN(requests));
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER; flags++) {
                st_load_options options = loading_by(loading_engines[e]);
                options.flags = flags;
                loading_all(checkpoint, requests, n, &options);
            }
}

static void sharded_checkpoints(void) {
    static const fixture_generation generation = {3, 30, 100003, 5, 0, 0};
    const char *small = fixture_write_sharded("small", 1), *path = fixture_model_in("shards");
    fixture_put_quickly(path, &generation);
    char index[512];
    CHECK(snprintf(index, sizeof(index), "%s.index.json", path) < (int)sizeof(index));
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open_path(small, storage, 0);
        load_everything(checkpoint);
        st_close(checkpoint);
        checkpoint = fixture_open_path(index, storage, 0);
        CHECK(st_shard_len(checkpoint) == generation.shards);
        load_everything(checkpoint);
        st_close(checkpoint);
    }
}

/* Files of a few bytes, of which none is a multiple of anything. */
static void the_sample(void) {
    for (size_t shift = 0; shift < 64; shift += 7) {
        fixture shifted = fixture_sample;
        shifted.shift = shift;
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            st_checkpoint *checkpoint = fixture_open(&shifted, fixture_storages[s], 0);
            st_request requests[SAMPLE_LEN];
            const size_t n = loading_whole(checkpoint, requests, LEN(requests));
            for (size_t e = 0; e < LEN(loading_every_engine); e++)
                if (loading_fits(fixture_storages[s], loading_every_engine[e])) {
                    const st_load_options options = loading_by(loading_every_engine[e]);
                    loading_all(checkpoint, requests, n, &options);
                }
            st_close(checkpoint);
        }
    }
}

static void elements_of_less_than_a_byte(void) {
    static const fixture_tensor tensors[] = {{"f4", "F4", "[6,4]", 12, NULL}, {"f6", "F6_E2M3", "[4,8]", 24, NULL}};
    static const fixture small = {tensors, LEN(tensors), NULL, 0};
    static const st_range rows = {1, 5}, columns[] = {{0, ST_END}, {4, 8}}, half[] = {{1, 3}, {2, 4}};
    static const st_range inside[] = {{0, 1}, {1, 3}};
    const st_request requests[] = {{0, NULL, 0, NULL, 0, 1}, {0, &rows, 1, NULL, 0, 2},  {0, half, 2, NULL, 0, 3},
                                   {1, NULL, 0, NULL, 0, 4}, {1, columns, 2, NULL, 0, 5}};
    const st_request cut = {0, inside, 2, NULL, 0, 6};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&small, fixture_storages[s], 0);
        loading_all(checkpoint, requests, LEN(requests), NULL);
        st_load *load;
        FAILS(ST_ERR_MISALIGNED, st_load_start(checkpoint, &cut, 1, NULL, &load, &err));
        CHECK(!load);
        st_close(checkpoint);
    }
}

/* Far more requests than reads: they must be joined, and each be found again. */
static void many_small_tensors(void) {
    enum { MANY = 5000 };
    static fixture_tensor tensors[MANY];
    static char names[MANY][24], shapes[MANY][24];
    static st_request requests[MANY];
    const size_t many = test_is_instrumented() ? 500 : MANY;
    for (size_t i = 0; i < many; i++) {
        const size_t size = loading_random(300);
        snprintf(names[i], sizeof(names[i]), "t%zu", i);
        snprintf(shapes[i], sizeof(shapes[i]), "[%zu]", size);
        tensors[i] = (fixture_tensor){names[i], "U8", shapes[i], size, NULL};
    }
    const fixture small = {tensors, many, NULL, 5};
    st_checkpoint *checkpoint = fixture_open(&small, ST_STORAGE_AUTO, 0);
    CHECK(loading_whole(checkpoint, requests, MANY) == many);
    /* Not in the order of the file. */
    for (size_t i = 0; i < many; i++) {
        const size_t other = loading_random(many);
        const st_request kept = requests[i];
        requests[i] = requests[other];
        requests[other] = kept;
    }
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER; flags++) {
            st_load_options options = loading_by(loading_engines[e]);
            options.flags = flags;
            loading_all(checkpoint, requests, many, &options);
        }
    st_close(checkpoint);
}

/* Whatever is asked for, and however. */
static void at_random(void) {
    enum { MOST = 40 };
    const int rounds = test_is_instrumented() ? 12 : 400;
    st_checkpoint *checkpoints[2] = {fixture_open(&loading_model, ST_STORAGE_AUTO, 0),
                                     fixture_open(&loading_model, ST_STORAGE_MEMORY, 0)};
    for (int round = 0; round < rounds; round++) {
        const bool memory = round % 5 == 4;
        st_checkpoint *checkpoint = checkpoints[memory];
        st_range ranges[MOST][3];
        st_request requests[MOST];
        unsigned char *memories[MOST];
        const size_t n = 1 + loading_random(MOST);
        for (size_t i = 0; i < n; i++) {
            st_tensor tensor;
            st_request *request = &requests[i];
            *request = (st_request){loading_random(L_LEN), NULL, 0, NULL, 0, loading_random(UINT64_MAX)};
            OK(st_tensor_info(checkpoint, request->index, &tensor, &err));
            if (loading_random(3) > 0) {
                request->ranges = ranges[i];
                request->rank = loading_random(tensor.rank + 1);
                for (size_t d = 0; d < request->rank; d++) {
                    ranges[i][d].start = loading_random(tensor.shape[d] + 1);
                    ranges[i][d].stop = ranges[i][d].start + loading_random(tensor.shape[d] - ranges[i][d].start + 1);
                }
            }
            memories[i] = NULL;
            if (loading_random(2) == 0) {
                const size_t size = loading_size(checkpoint, request), shift = loading_random(PAGE);
                memories[i] = malloc(size + shift + 1);
                CHECK(memories[i]);
                request->dst = memories[i] + shift;
                request->dst_len = size;
            }
        }
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.flags = loading_random(2) ? ST_LOAD_IN_ORDER : 0;
        options.engine = loading_every_engine[loading_random(LEN(loading_every_engine))];
        if (!loading_fits(memory ? ST_STORAGE_MEMORY : ST_STORAGE_AUTO, options.engine))
            options.engine = ST_ENGINE_AUTO;
        options.workers = (uint32_t)loading_random(5);
        options.queue_depth = (uint32_t)loading_random(20);
        options.block_bytes = loading_random(3) ? 0 : 65536 + PAGE * loading_random(100);
        options.staging_bytes = loading_random(3) ? 65536 + loading_random(1 << 20) : 0;
        options.piece_bytes = loading_random(2) ? PAGE + loading_random(1 << 18) : 0;
        options.over_read = loading_random(2) ? (uint32_t)loading_random(300) : ST_OVER_READ_NONE;
        loading_all(checkpoint, requests, n, &options);
        for (size_t i = 0; i < n; i++)
            free(memories[i]);
    }
    st_close(checkpoints[0]);
    st_close(checkpoints[1]);
}

/* --- how much is read --------------------------------------------------------------------------------------------- */

enum { EQUAL = 64, EQUAL_SIZE = 64 << 10 };

/* Tensors of one size, of which requests ask for every other one; gives how much more than that was read. */
static uint64_t read_beyond(int32_t engine, uint32_t over_read, size_t size) {
    static fixture_tensor tensors[EQUAL];
    static char names[EQUAL][24], shape[16];
    st_request requests[EQUAL / 2];
    snprintf(shape, sizeof(shape), "[%zu]", size);
    for (size_t i = 0; i < EQUAL; i++) {
        snprintf(names[i], sizeof(names[i]), "t%02zu", i);
        tensors[i] = (fixture_tensor){names[i], "U8", shape, size, NULL};
    }
    const fixture equal = {tensors, EQUAL, NULL, 0};
    st_checkpoint *checkpoint = fixture_open(&equal, ST_STORAGE_AUTO, 0);
    for (size_t i = 0; i < LEN(requests); i++)
        requests[i] = (st_request){2 * i, NULL, 0, NULL, 0, i};
    loading it = loading_of(checkpoint, requests, LEN(requests));
    st_load_options options = loading_by(engine);
    options.over_read = over_read;
    loading_start(&it, &options);
    loading_drain(&it);
    st_progress progress;
    CHECK(st_load_progress(it.load, &progress) == ST_OK && progress.bytes_done == LEN(requests) * size);
    CHECK(progress.bytes_read >= progress.bytes_done && it.failed == 0);
    loading_free(&it);
    st_close(checkpoint);
    return progress.bytes_read - progress.bytes_done;
}

static void gaps_are_read_as_far_as_is_allowed(void) {
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const int32_t engine = loading_engines[e];
        const bool direct = loading_engine_here(engine) & (ST_ENGINE_DIRECT | ST_ENGINE_URING);
        /* Around the page cache the system reads whole pages, whatever was asked for. */
        const uint64_t wanted = EQUAL / 2 * EQUAL_SIZE, edges = direct || !engine ? EQUAL / 2 * 2 * PAGE : 0;
        CHECK(read_beyond(engine, ST_OVER_READ_NONE, EQUAL_SIZE) <= edges);
        CHECK(read_beyond(engine, 0, EQUAL_SIZE) <= wanted / 10 + edges);
        CHECK(read_beyond(engine, 50, EQUAL_SIZE) <= wanted / 2 + edges);
        CHECK(read_beyond(engine, 100000, EQUAL_SIZE) <= wanted + edges);
        CHECK(read_beyond(engine, ST_OVER_READ_NONE, 100) <= edges);
    }
}

/* --- the page cache ----------------------------------------------------------------------------------------------- */

/* How much of a file is in memory, in percent. */
static size_t in_memory(const char *path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    CHECK(fd >= 0 && fstat(fd, &stat) == 0);
    const size_t len = (size_t)stat.st_size, page = (size_t)sysconf(_SC_PAGESIZE), pages = (len + page - 1) / page;
    void *mapping = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    unsigned char *are_in = malloc(pages);
    CHECK(mapping != MAP_FAILED && are_in && mincore(mapping, len, are_in) == 0);
    size_t in = 0;
    for (size_t i = 0; i < pages; i++)
        in += are_in[i] & 1;
    free(are_in);
    munmap(mapping, len);
    close(fd);
    return in * 100 / pages;
}

static uint32_t engines_of_a_load(const char *path) {
    st_request requests[L_LEN];
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    const size_t n = loading_whole(checkpoint, requests, L_LEN);
    st_load *load;
    st_loaded loaded;
    st_status status;
    st_progress progress;
    OK(st_load_start(checkpoint, requests, n, NULL, &load, &err));
    while ((status = st_load_next(load, -1, &loaded, &err)) == ST_OK)
        OK(st_load_recycle(load, &loaded, &err));
    CHECK(status == ST_DONE && st_load_progress(load, &progress) == ST_OK);
    st_load_free(load);
    st_close(checkpoint);
    return progress.engines;
}

static void what_the_page_cache_has_is_not_read_again(void) {
    const char *path = fixture_write("cached.safetensors", &loading_model);
    const int32_t around = loading_engine_here(ST_ENGINE_URING);
    if (in_memory(path) == 100)
        CHECK(engines_of_a_load(path) == ST_ENGINE_BUFFERED);
    loading_drop(path);
    if (in_memory(path) > 5 || around == ST_ENGINE_BUFFERED)
        SKIP("the page cache keeps what it should not, or cannot be gone around");
    CHECK(engines_of_a_load(path) & (uint32_t)around);
    /* The way around it leaves it as it is. */
    CHECK(in_memory(path) < 50);
}

static const test_case cases[] = {
    CASE(whole_tensors),
    CASE(slices),
    CASE(slices_of_their_own),
    CASE(combs),
    CASE(destinations_at_every_alignment),
    CASE(destinations_at_the_end_of_memory),
    CASE(destinations_of_more_than_is_needed),
    CASE(the_same_tensor_to_several_places),
    CASE(sharded_checkpoints),
    CASE(the_sample),
    CASE(elements_of_less_than_a_byte),
    CASE(many_small_tensors),
    CASE(at_random),
    CASE(gaps_are_read_as_far_as_is_allowed),
    CASE(what_the_page_cache_has_is_not_read_again),
};
TEST_MAIN(cases)
