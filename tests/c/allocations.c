/*
 * Memory that runs out, at every place where as much of it is wanted as a file or a caller
 * chooses: each allocation of 1 KiB or more fails in turn, alone and with all that follow it. The
 * calls must succeed in another way or return ST_ERR_NO_MEMORY; afterwards, with memory, the same
 * must work.
 *
 * Allocations that may end the process all the same: none of that size.
 */
#define _GNU_SOURCE

#include "failing.h"
#include "fixture.h"
#include "test.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TENSORS = 2000, NBYTES = 64, SHARD_COUNT = 50, RANK = 2000 };

/* Whether a call that fails for lack of memory is right now. */
static bool may_fail;

/*
 * Whether a call has succeeded. It may also have found no memory, if some was denied; and that is
 * all.
 */
static bool ok(st_status status) {
    if (status == ST_OK)
        return true;
    if (status != ST_ERR_NO_MEMORY)
        fprintf(stderr, "status %d %s\n", (int)status, st_status_name(status));
    CHECK(status == ST_ERR_NO_MEMORY && may_fail && failing_has_failed());
    return false;
}

/* The same of a call that fills err. */
#define WORKS(call) (memset(&err, 0, sizeof(err)), had_reason(call))

static bool had_reason(st_status status) {
    CHECK(status == ST_OK || (err.status == status && strlen(err.message) > 0));
    return ok(status);
}

static void (*operation)(void);

/* First as failures allow, then with memory, when everything must work. */
static bool with_and_without(long n, bool from_then_on) {
    may_fail = true;
    failing_start(n, from_then_on);
    operation();
    const bool failed = failing_stop();
    may_fail = false;
    operation();
    return failed;
}

static void each_fails_in(void (*run)(void)) {
    operation = run;
    failing_each(with_and_without);
}

/* --- Opening ------------------------------------------------------------------------------- */

static const char *path;
static st_open_options open_options;

static st_checkpoint *open_it(void) {
    st_checkpoint *checkpoint;
    if (!WORKS(st_open(path, &open_options, &checkpoint, &err)))
        CHECK(!checkpoint);
    return checkpoint;
}

/* Everything that is made at the first question. */
static void ask(st_checkpoint *checkpoint) {
    const size_t *indices;
    size_t len, index;
    CHECK(st_len(checkpoint) == TENSORS);
    CHECK(st_keys(checkpoint, &len) ? len == TENSORS : may_fail && failing_has_failed());
    if (ok(st_find_prefix(checkpoint, "t", &indices, &len)))
        CHECK(len == TENSORS);
    CHECK(st_find(checkpoint, "t77", &index) == ST_OK);
}

static void open_and_ask(void) {
    st_checkpoint *checkpoint = open_it();
    if (checkpoint)
        ask(checkpoint);
    st_close(checkpoint);
}

static const st_open_options open_defaults = ST_OPEN_OPTIONS_INIT;

static void open_each_way(void) {
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        open_options = open_defaults;
        open_options.storage = storage;
        each_fails_in(open_and_ask);
    }
}

/* A file of the tensors t0, t1, ..., misaligned, so that pointers need copies. */
static void write_file(const char *name, const char *metadata) {
    static char names[TENSORS][16];
    static fixture_tensor tensors[TENSORS];
    for (size_t i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof(names[i]), "t%zu", i);
        tensors[i] = (fixture_tensor){names[i], "F16", "[32]", NBYTES, NULL};
    }
    const fixture file = {tensors, TENSORS, metadata, 1};
    path = fixture_write(name, &file);
}

static void open_a_file(void) {
    failing_needs_malloc();
    write_file("plain.safetensors", "{\"format\":\"pt\"}");
    open_each_way();
}

static void open_a_header_with_escapes(void) {
    failing_needs_malloc();
    static char metadata[1 << 14] = "{\"\\u0066\":\"";
    size_t len = strlen(metadata);
    /* A value that is itself longer than what fails. */
    while (len < sizeof(metadata) - 16)
        len += (size_t)snprintf(metadata + len, sizeof(metadata) - len, "\\u0070");
    strcpy(metadata + len, "\"}");
    write_file("escapes.safetensors", metadata);
    open_each_way();
}

static unsigned char *buffer;
static size_t buffer_len;

static void open_memory(void) {
    st_checkpoint *checkpoint;
    if (WORKS(st_open_buffer(buffer, buffer_len, &open_options, &checkpoint, &err)))
        ask(checkpoint);
    st_close(checkpoint);
}

static void open_a_buffer(void) {
    failing_needs_malloc();
    write_file("plain.safetensors", "{\"format\":\"pt\"}");
    open_options = open_defaults;
    buffer = fixture_slurp(path, &buffer_len);
    each_fails_in(open_memory);
    free(buffer);
}

/* A checkpoint of as many shards that lists of them are counted, too. */
static const fixture_generation sharded = {
    3, TENSORS, NBYTES, SHARD_COUNT, ST_WRITE_NO_SYNC | ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3, 0,
};

static void write_shards(void) {
    static char model[512];
    strcpy(model, fixture_model_in("shards"));
    fixture_put(model, &sharded);
    static char index[600];
    snprintf(index, sizeof(index), "%s.index.json", model);
    path = index;
    open_options = open_defaults;
}

static void open_shards_by_their_index(void) {
    failing_needs_malloc();
    write_shards();
    open_each_way();
}

static void open_shards_by_their_directory(void) {
    failing_needs_malloc();
    write_shards();
    CHECK(remove(path) == 0);
    static char directory[600];
    snprintf(directory, sizeof(directory), "%s", path);
    *strrchr(directory, '/') = 0;
    path = directory;
    open_each_way();
}

/* The same index with other spelling: serde_json unescapes it. */
static void open_shards_by_an_index_with_escapes(void) {
    failing_needs_malloc();
    write_shards();
    size_t len;
    char *text = (char *)fixture_slurp(path, &len);
    FILE *file = fopen(path, "wb");
    CHECK(file);
    for (size_t i = 0; i < len; i++)
        if (i > 0 && i + 1 < len && text[i - 1] == '"' && text[i] == 't' && isdigit((unsigned char)text[i + 1]))
            fprintf(file, "\\u0074");
        else
            fputc(text[i], file);
    CHECK(fclose(file) == 0);
    free(text);
    open_each_way();
}

static void open_shards_that_are_verified(void) {
    failing_needs_malloc();
    write_shards();
    for (int32_t verify = ST_VERIFY_STRUCTURE; verify <= ST_VERIFY_FULL; verify++) {
        open_options = open_defaults;
        open_options.verify = verify;
        each_fails_in(open_and_ask);
    }
}

/* --- Reading ------------------------------------------------------------------------------- */

static st_checkpoint *model;
static size_t number_of[TENSORS]; /* of the tensor of an index, in the generation */

/* A checkpoint that is open before anything fails. */
static void open_before(int32_t storage, int32_t verify, uint64_t budget) {
    open_options = open_defaults;
    open_options.storage = storage;
    open_options.verify = verify;
    open_options.budget = budget;
    OK(st_open(path, &open_options, &model, &err));
    for (size_t i = 0; i < TENSORS; i++) {
        st_tensor tensor;
        OK(st_tensor_info(model, i, &tensor, &err));
        number_of[i] = strtoul(tensor.name + 1, NULL, 10);
    }
}

static bool is_tensor(size_t index, const void *bytes, size_t at, size_t len) {
    return fixture_is(bytes, fixture_shift(&sharded, number_of[index]) + at, len);
}

static void use_pointers(void) {
    for (size_t i = 0; i < TENSORS; i += 97) {
        const void *data;
        unsigned char read[NBYTES];
        if (WORKS(st_tensor_ptr(model, i, &data, NULL, &err)))
            CHECK(is_tensor(i, data, 0, NBYTES));
        if (WORKS(st_acquire(model, i + 1, &data, NULL, &err))) {
            CHECK(is_tensor(i + 1, data, 0, NBYTES));
            OK(st_release(model, i + 1, &err));
        }
        if (WORKS(st_tensor_read(model, i, NULL, 0, read, sizeof(read), &err)))
            CHECK(is_tensor(i, read, 0, NBYTES));
    }
    size_t wanted[TENSORS];
    for (size_t i = 0; i < TENSORS; i++)
        wanted[i] = TENSORS - 1 - i;
    st_residency_info info;
    (void)WORKS(st_prefetch(model, wanted, TENSORS, &err));
    (void)WORKS(st_residency(model, ST_ALL, &info, &err));
    (void)WORKS(st_set_budget(model, 50000, &err));
    (void)WORKS(st_evict(model, ST_ALL, 0, &err));
}

static void use_what_is_open(void) {
    failing_needs_malloc();
    write_shards();
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++)
        for (int32_t verify = ST_VERIFY_NONE; verify <= ST_VERIFY_FIRST_USE; verify++) {
            open_before(storage, verify, 0);
            each_fails_in(use_pointers);
            st_close(model);
        }
}

static void verify_it(void) {
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    st_verify_report report;
    static const char *digests[SHARD_COUNT];
    options.sha256 = digests;
    options.sha256_len = SHARD_COUNT;
    if (WORKS(st_verify(model, &options, &report, &err)))
        CHECK(report.tensors == TENSORS && report.bad_tensors == 0 && report.bad_shards == 0);
}

static void verify(void) {
    failing_needs_malloc();
    write_shards();
    open_before(ST_STORAGE_AUTO, ST_VERIFY_NONE, 0);
    each_fails_in(verify_it);
    st_close(model);
}

/* --- Slices of many dimensions ------------------------------------------------------------- */

static st_range deep_ranges[RANK];

static void open_deep(void) {
    static char shape[2 * RANK + 2] = "[4";
    for (size_t i = 1; i < RANK; i++)
        memcpy(shape + 2 * i, ",1", 2);
    shape[2 * RANK] = ']';
    for (size_t i = 0; i < RANK; i++)
        deep_ranges[i].stop = ST_END;
    deep_ranges[0].start = 1;
    const fixture_tensor tensor = {"deep", "U8", shape, 4, NULL};
    const fixture file = {&tensor, 1, NULL, 0};
    model = fixture_open(&file, ST_STORAGE_MMAP, 0);
}

static void slice_deeply(void) {
    unsigned char dst[3];
    DLManagedTensorVersioned *managed;
    if (WORKS(st_tensor_read(model, 0, deep_ranges, RANK, dst, sizeof(dst), &err)))
        CHECK(fixture_is(dst, 1, 3));
    if (WORKS(st_tensor_dlpack(model, 0, deep_ranges, RANK, &managed, &err)))
        (*(void (**)(DLManagedTensorVersioned *))((char *)managed + 16))(managed);
    static uint64_t shape[RANK];
    static int64_t map[RANK];
    static st_range ranges[RANK];
    static const uint64_t devices[] = {2, 2};
    for (size_t i = 0; i < RANK; i++)
        shape[i] = 2, map[i] = -1;
    map[RANK - 1] = 0;
    st_layout layout = ST_LAYOUT_INIT;
    layout.device_matrix = devices, layout.device_dims = LEN(devices);
    layout.tensor_map = map, layout.tensor_map_len = RANK;
    if (WORKS(st_layout_ranges(&layout, shape, RANK, 1, ranges, &err)))
        CHECK(ranges[RANK - 1].start == 1 && ranges[RANK - 1].stop == 2);
}

static void slice_many_dimensions(void) {
    failing_needs_malloc();
    open_deep();
    each_fails_in(slice_deeply);
    st_close(model);
}

/* --- Loading ------------------------------------------------------------------------------- */

static st_request requests[2 * TENSORS];
static size_t request_len;
static st_load_options load_options;
static bool recycles;

static void load_it(void) {
    st_load *load;
    st_loaded it;
    if (!WORKS(st_load_start(model, requests, request_len, &load_options, &load, &err))) {
        CHECK(!load);
        return;
    }
    size_t arrived = 0, failed = 0;
    for (st_status status; (status = st_load_next(load, -1, &it, &err)) != ST_DONE;) {
        if (!had_reason(status)) {
            failed++;
            if (it.request == ST_ALL)
                break;
            continue;
        }
        const st_request *request = &requests[it.request];
        const uint64_t start = request->ranges ? request->ranges[0].start : 0;
        CHECK(is_tensor(it.index, it.data, start + it.offset, it.nbytes));
        arrived += it.last;
        if (recycles)
            OK(st_load_recycle(load, &it, &err));
    }
    CHECK(may_fail || (failed == 0 && arrived == request_len));
    st_load_free(load);
}

static const st_load_options load_defaults = ST_LOAD_OPTIONS_INIT;

static void load_each_way(int32_t verify) {
    static const int32_t engines[] = {ST_ENGINE_AUTO, ST_ENGINE_BUFFERED, ST_ENGINE_DIRECT,
                                      ST_ENGINE_URING};
    open_before(ST_STORAGE_AUTO, verify, 0);
    for (size_t i = 0; i < LEN(engines); i++) {
        load_options.engine = engines[i];
        each_fails_in(load_it);
    }
    st_close(model);
}

/* A request for every tensor. */
static void ask_for_all(unsigned char *dst) {
    for (size_t i = 0; i < TENSORS; i++)
        requests[i] = (st_request){i, NULL, 0, dst ? dst + i * NBYTES : NULL, dst ? NBYTES : 0, i};
    request_len = TENSORS;
    load_options = load_defaults;
    recycles = true;
    write_shards();
}

static unsigned char destination[TENSORS * NBYTES];

static void load_to_destinations(void) {
    failing_needs_malloc();
    ask_for_all(destination);
    load_each_way(ST_VERIFY_NONE);
}

static void load_staged(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    load_each_way(ST_VERIFY_NONE);
}

static void load_staged_in_order(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    load_options.flags = ST_LOAD_IN_ORDER;
    load_each_way(ST_VERIFY_NONE);
}

static void load_staged_and_keep_everything(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    recycles = false;
    load_each_way(ST_VERIFY_NONE);
}

static void load_with_little_staging_memory(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    load_options.staging_bytes = 1 << 16;
    load_each_way(ST_VERIFY_NONE);
}

static void load_slices(void) {
    failing_needs_malloc();
    static const st_range half = {10, 50};
    ask_for_all(NULL);
    for (size_t i = 0; i < TENSORS; i++)
        requests[i].ranges = &half, requests[i].rank = 1;
    load_each_way(ST_VERIFY_NONE);
}

/* Each tensor twice: what overlaps is read one by one. */
static void load_what_overlaps(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    memcpy(requests + TENSORS, requests, TENSORS * sizeof(*requests));
    request_len = 2 * TENSORS;
    load_each_way(ST_VERIFY_NONE);
}

static void load_what_is_verified(void) {
    failing_needs_malloc();
    ask_for_all(NULL);
    load_each_way(ST_VERIFY_FIRST_USE);
}

static void load_deeply(void) {
    const st_request request = {0, deep_ranges, RANK, NULL, 0, 0};
    st_load *load;
    st_loaded it;
    if (!WORKS(st_load_start(model, &request, 1, NULL, &load, &err)))
        return;
    if (had_reason(st_load_next(load, -1, &it, &err)))
        CHECK(it.nbytes == 3 && fixture_is(it.data, 1, 3));
    st_load_free(load);
}

static void load_a_slice_of_many_dimensions(void) {
    failing_needs_malloc();
    open_deep();
    each_fails_in(load_deeply);
    st_close(model);
}

/* --- Staged memory that nobody recycles ---------------------------------------------------- */

enum { HELD = 600000 };
static rlim_t more_bytes;

static rlim_t mapped_bytes(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long pages;
    CHECK(file && fscanf(file, "%lu", &pages) == 1);
    fclose(file);
    return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

/*
 * As many requests as no table of fixed size holds, of one byte each, and a limit to the process's
 * memory while they arrive.
 */
static void hold_all(void) {
    char *file = malloc(HELD * 80 + 64);
    CHECK(file);
    size_t len = 8;
    file[len++] = '{';
    for (size_t i = 0; i < HELD; i++)
        len += (size_t)sprintf(file + len,
                               "%s\"%zu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                               i ? "," : "", i, i, i + 1);
    file[len++] = '}';
    for (size_t i = 0; i < 8; i++)
        file[i] = (char)((len - 8) >> (8 * i));
    memset(file + len, 7, HELD);
    st_request *all = calloc(HELD, sizeof(*all));
    CHECK(all);
    for (size_t i = 0; i < HELD; i++)
        all[i].index = i;
    st_load *load;
    st_loaded it;
    OK(st_open_buffer(file, len + HELD, NULL, &model, &err));
    OK(st_load_start(model, all, HELD, NULL, &load, &err));
    OK(st_load_next(load, -1, &it, &err));
    const struct rlimit limit = {mapped_bytes() + more_bytes, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    st_status status;
    while ((status = st_load_next(load, -1, &it, &err)) != ST_DONE) {
        CHECK(status == ST_OK || status == ST_ERR_NO_MEMORY || status == ST_ERR_STAGING_FULL);
        if (it.request == ST_ALL)
            break;
        CHECK(status != ST_OK || *(unsigned char *)it.data == 7);
    }
    st_load_free(load);
    st_close(model);
}

static void hold_everything_within_a_limit(void) {
    failing_needs_malloc();
    for (more_bytes = 1 << 20; more_bytes <= 64 << 20; more_bytes *= 2)
        CHECK(test_in_child(hold_all) == 0);
}

/* --- Writing ------------------------------------------------------------------------------- */

static const fixture_generation *written;
static char written_path[512];

/* A call that finds no memory is made again with it, and the writer goes on from there. */
static void write_it(void) {
    fixture_writing writing = {written, written_path, NULL, NULL, 0, 0, 0};
    if (!WORKS(fixture_go_on(&writing, &err))) {
        failing_stop();
        OK(fixture_go_on(&writing, &err));
    }
    failing_stop();
    CHECK(fixture_found(written_path, written, 1) == written);
}

/* The same where the writer is given up. */
static void write_or_abort(void) {
    fixture_writing writing = {written, written_path, NULL, NULL, 0, 0, 0};
    if (!WORKS(fixture_go_on(&writing, &err)))
        st_writer_abort(writing.writer);
}

static void write_as(const char *directory, const fixture_generation *generation) {
    failing_needs_malloc();
    written = generation;
    strcpy(written_path, fixture_model_in(directory));
    /* What the harness needs is there before anything fails. */
    fixture_run(250, written->nbytes);
    fixture_put_quickly(written_path, generation);
    each_fails_in(write_it);
    each_fails_in(write_or_abort);
}

static void write_a_file(void) {
    static const fixture_generation generation = {1, 300, 3000, 0, ST_WRITE_NO_SYNC, 0};
    write_as("file", &generation);
}

static void write_a_file_with_checksums(void) {
    static const fixture_generation generation = {
        2, 300, 3000, 0, ST_WRITE_NO_SYNC | ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3, 0,
    };
    write_as("sums", &generation);
}

static void write_a_file_in_pieces(void) {
    static const fixture_generation generation = {4, 300, 3000, 0, ST_WRITE_NO_SYNC | ST_WRITE_BLAKE3, 1};
    write_as("pieces", &generation);
}

static void write_many_shards(void) {
    static const fixture_generation generation = {5, 300, 64, 30, ST_WRITE_NO_SYNC | ST_WRITE_CRC, 0};
    write_as("many", &generation);
}

static void write_many_shards_in_pieces(void) {
    static const fixture_generation generation = {6, 300, 64, 30, ST_WRITE_NO_SYNC | ST_WRITE_SHA256, 1};
    write_as("many_pieces", &generation);
}

static const test_case cases[] = {
    CASE(open_a_file),
    CASE(open_a_header_with_escapes),
    CASE(open_a_buffer),
    CASE(open_shards_by_their_index),
    CASE(open_shards_by_their_directory),
    CASE(open_shards_by_an_index_with_escapes),
    CASE(open_shards_that_are_verified),
    CASE(use_what_is_open),
    CASE(verify),
    CASE(slice_many_dimensions),
    CASE(load_to_destinations),
    CASE(load_staged),
    CASE(load_staged_in_order),
    CASE(load_staged_and_keep_everything),
    CASE(load_with_little_staging_memory),
    CASE(load_slices),
    CASE(load_what_overlaps),
    CASE(load_what_is_verified),
    CASE(load_a_slice_of_many_dimensions),
    CASE(hold_everything_within_a_limit),
    CASE(write_a_file),
    CASE(write_a_file_with_checksums),
    CASE(write_a_file_in_pieces),
    CASE(write_many_shards),
    CASE(write_many_shards_in_pieces),
};

TEST_MAIN(cases)
