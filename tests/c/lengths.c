/*
 * Lengths that cannot be right are refused before the array is read: here each array ends where
 * memory ends that nobody may touch.
 */
#include "fixture.h"
#include "loading.h"
#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* More than a header has room for; more than fits any object; garbage. */
static const size_t absurd[] = {50000001, 1000000000, (size_t)1 << 48, SIZE_MAX / 32, SIZE_MAX / 2, SIZE_MAX};

static st_checkpoint *checkpoint;

static void open_sample(void) {
    checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
}

static void digests_beyond_the_shards(void) {
    open_sample();
    const char **digests = (const char **)(void *)loading_guarded(sizeof(*digests), true);
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.sha256 = digests;
    options.sha256_len = 2;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, NULL, &err));
    SAYS("2 digests of files were given for 1 shards");
    for (size_t i = 0; i < LEN(absurd); i++) {
        options.sha256_len = absurd[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, NULL, &err));
    }
    loading_unguard((unsigned char *)digests, sizeof(*digests));
    st_close(checkpoint);
}

static void ranges_beyond_the_dimensions(void) {
    open_sample();
    st_range *ranges = (st_range *)(void *)loading_guarded(sizeof(*ranges), true);
    static unsigned char dst[SAMPLE_WEIGHT_SIZE];
    const st_load_options options = ST_LOAD_OPTIONS_INIT;
    DLManagedTensorVersioned *managed;
    DLManagedTensor *unversioned;
    st_view view;
    st_load *load;
    *ranges = (st_range){0, ST_END};
    for (size_t i = 0; i <= LEN(absurd); i++) {
        const size_t n = i == LEN(absurd) ? 3 : absurd[i];
        const st_request request = {.index = SAMPLE_WEIGHT, .ranges = ranges, .rank = n};
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_view(checkpoint, SAMPLE_WEIGHT, ranges, n, &view, &err));
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_read(checkpoint, SAMPLE_WEIGHT, ranges, n, dst, sizeof(dst), &err));
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_dlpack(checkpoint, SAMPLE_WEIGHT, ranges, n, &managed, &err));
        FAILS(ST_ERR_OUT_OF_RANGE,
              st_tensor_dlpack_unversioned(checkpoint, SAMPLE_WEIGHT, ranges, n, &unversioned, &err));
        FAILS(ST_ERR_OUT_OF_RANGE, st_load_start(checkpoint, &request, 1, &options, &load, &err));
    }
    loading_unguard((unsigned char *)ranges, sizeof(*ranges));
    st_close(checkpoint);
}

static void names_beyond_any_header(void) {
    open_sample();
    char *name = (char *)loading_guarded(3, true);
    memcpy(name, "odd", 3);
    size_t index;
    CHECK(st_find_n(checkpoint, name, 3, &index) == ST_OK && index == SAMPLE_ODD);
    for (size_t i = 1; i < LEN(absurd); i++)
        CHECK(st_find_n(checkpoint, name, absurd[i], &index) == ST_ERR_NOT_FOUND);
    CHECK(st_find_n(NULL, name, SIZE_MAX, &index) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_n(checkpoint, NULL, SIZE_MAX, &index) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_n(checkpoint, name, SIZE_MAX, NULL) == ST_ERR_INVALID_ARGUMENT);
    loading_unguard((unsigned char *)name, 3);
    st_close(checkpoint);
}

static void shapes_beyond_any_header(void) {
    uint64_t *shape = (uint64_t *)(void *)loading_guarded(sizeof(*shape), true);
    st_writer *writer;
    *shape = 1;
    OK(st_writer_open(fixture_model_in("shapes"), NULL, &writer, &err));
    for (size_t i = 0; i < LEN(absurd); i++) {
        FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(writer, "t", ST_DTYPE_U8, shape, absurd[i], "", 1, &err));
        FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, "t", ST_DTYPE_U8, shape, absurd[i], &err));
    }
    /* Bytes that a tensor does not need are not read either. */
    unsigned char *data = loading_guarded(1, true);
    OK(st_writer_declare(writer, "t", ST_DTYPE_U8, shape, 1, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_add(writer, "u", ST_DTYPE_U8, shape, 1, data, (size_t)1 << 48, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_write(writer, "t", data, (size_t)1 << 48, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, "t", data, SIZE_MAX, &err));
    st_writer_abort(writer);
    loading_unguard(data, 1);
    loading_unguard((unsigned char *)shape, sizeof(*shape));
}

/*
 * One of the arrays of a layout, or of the tensor, is of an absurd length at a time, and the
 * others as long as they must be then.
 */
static void layouts_beyond_any_tensor(void) {
    uint64_t *shape = (uint64_t *)(void *)loading_guarded(sizeof(*shape), true);
    uint64_t *devices = (uint64_t *)(void *)loading_guarded(sizeof(*devices), true);
    int64_t *map = (int64_t *)(void *)loading_guarded(sizeof(*map), true);
    size_t *starts = (size_t *)(void *)loading_guarded(2 * sizeof(*starts), true);
    st_range *ranges = (st_range *)(void *)loading_guarded(sizeof(*ranges), true);
    *shape = 4, *devices = 2, *map = 0, starts[0] = 0, starts[1] = 1;
    for (size_t i = 0; i <= LEN(absurd); i++) {
        const bool right = i == LEN(absurd);
        for (int which = 0; which < 4; which++) {
            const size_t n = right ? 1 : absurd[i];
            const st_layout layout = {.struct_size = sizeof(layout),
                                      .device_matrix = devices,
                                      .device_dims = which == 0 ? n : 1,
                                      .tensor_map = map,
                                      .tensor_map_len = which == 1 || which == 2 ? n : 1,
                                      .tensor_map_starts = which == 3 ? starts : NULL};
            const size_t ndim = which >= 2 ? n : 1;
            const st_status status = right ? ST_OK : ST_ERR_INVALID_ARGUMENT;
            test_before();
            test_after(__FILE__, __LINE__, "st_layout_ranges",
                       st_layout_ranges(&layout, shape, ndim, 1, ranges, &err), status);
            CHECK(!right || (ranges->start == 2 && ranges->stop == 4));
        }
    }
    loading_unguard((unsigned char *)shape, sizeof(*shape));
    loading_unguard((unsigned char *)devices, sizeof(*devices));
    loading_unguard((unsigned char *)map, sizeof(*map));
    loading_unguard((unsigned char *)starts, 2 * sizeof(*starts));
    loading_unguard((unsigned char *)ranges, sizeof(*ranges));
}

/* Where the length has no bound of its own, one that no object has is refused. */
static void lengths_beyond_any_object(void) {
    open_sample();
    size_t *indices = (size_t *)(void *)loading_guarded(sizeof(*indices), true);
    st_request *requests = (st_request *)(void *)loading_guarded(sizeof(*requests), true);
    unsigned char *data = loading_guarded(8, true);
    st_checkpoint *buffer;
    st_load *load;
    *indices = 0;
    memset(requests, 0, sizeof(*requests));
    memset(data, 0, 8);
    for (size_t n = SIZE_MAX / 2; n; n = n == SIZE_MAX ? 0 : SIZE_MAX) {
        FAILS(ST_ERR_INVALID_ARGUMENT, st_prefetch(checkpoint, indices, n, &err));
        FAILS(ST_ERR_INVALID_ARGUMENT, st_load_start(checkpoint, requests, n, NULL, &load, &err));
    }
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_read(checkpoint, 0, NULL, 0, data, SIZE_MAX, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open_buffer(data, SIZE_MAX, NULL, &buffer, &err));
    loading_unguard((unsigned char *)indices, sizeof(*indices));
    loading_unguard((unsigned char *)requests, sizeof(*requests));
    loading_unguard(data, 8);
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(digests_beyond_the_shards),
    CASE(ranges_beyond_the_dimensions),
    CASE(names_beyond_any_header),
    CASE(shapes_beyond_any_header),
    CASE(layouts_beyond_any_tensor),
    CASE(lengths_beyond_any_object),
};

TEST_MAIN(cases)
