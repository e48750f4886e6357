#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIMENSIONS = 4 };
static const uint64_t shape[DIMENSIONS] = {3, 4, 5, 6};

/* What must come out, element by element; gives its size. */
static size_t naive(unsigned char *out, const st_range *ranges, size_t rank, size_t element_size) {
    size_t start[DIMENSIONS], stop[DIMENSIONS], written = 0;
    for (size_t d = 0; d < DIMENSIONS; d++) {
        start[d] = d < rank ? ranges[d].start : 0;
        stop[d] = d < rank && ranges[d].stop != ST_END ? ranges[d].stop : shape[d];
    }
    for (size_t a = start[0]; a < stop[0]; a++)
        for (size_t b = start[1]; b < stop[1]; b++)
            for (size_t c = start[2]; c < stop[2]; c++)
                for (size_t d = start[3]; d < stop[3]; d++) {
                    const size_t element = ((a * shape[1] + b) * shape[2] + c) * shape[3] + d;
                    for (size_t i = 0; i < element_size; i++)
                        out[written++] = fixture_byte(element * element_size + i);
                }
    return written;
}

/* A simple generator, so that a failure repeats. */
static uint64_t random_below(uint64_t limit) {
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % limit;
}

static void slices_against_a_naive_loop(void) {
    static const char *const dtypes[] = {"U8", "BF16", "F32", "F64"};
    static unsigned char expected[3 * 4 * 5 * 6 * 8], got[sizeof(expected) + 16];
    const int rounds = test_is_instrumented() ? 50 : 2000;
    for (size_t t = 0; t < LEN(dtypes); t++)
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            const size_t element_size = (size_t)1 << t;
            const fixture_tensor tensors[] = {{"t", dtypes[t], "[3,4,5,6]", 360 * element_size, NULL}};
            const fixture fixture = {tensors, 1, NULL, 3};
            st_checkpoint *checkpoint = fixture_open(&fixture, fixture_storages[s], 0);
            for (int round = 0; round < rounds; round++) {
                st_range ranges[DIMENSIONS];
                const size_t rank = random_below(DIMENSIONS + 1);
                for (size_t d = 0; d < rank; d++) {
                    ranges[d].start = random_below(shape[d] + 1);
                    ranges[d].stop = ranges[d].start + random_below(shape[d] - ranges[d].start + 1);
                    if (random_below(4) == 0)
                        ranges[d].stop = ST_END;
                }
                const size_t size = naive(expected, ranges, rank, element_size), shift = random_below(8);
                memset(got, 0xaa, sizeof(got));
                OK(st_tensor_read(checkpoint, 0, ranges, rank, got + shift, size, &err));
                CHECK(memcmp(got + shift, expected, size) == 0);
                /* Nothing before and nothing after. */
                CHECK((shift == 0 || got[shift - 1] == 0xaa) && got[shift + size] == 0xaa);
            }
            st_close(checkpoint);
        }
}

static void columns_across_large_gaps(void) {
    /* Rows of 40,000 bytes: gaps too large to read through. */
    enum { ROWS = 20, ROW = 40000 };
    const fixture_tensor tensors[] = {{"t", "U8", "[20,40000]", ROWS * ROW, NULL}};
    const fixture fixture = {tensors, 1, NULL, 0};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture, fixture_storages[s], 0);
        const uint64_t widths[] = {1, 100, 23615, 23616, 23617, 39999};
        for (size_t w = 0; w < LEN(widths); w++) {
            const st_range ranges[] = {{1, ROWS}, {1, 1 + widths[w]}};
            unsigned char *got = malloc((ROWS - 1) * widths[w]);
            CHECK(got);
            OK(st_tensor_read(checkpoint, 0, ranges, 2, got, (ROWS - 1) * widths[w], &err));
            for (size_t row = 1; row < ROWS; row++)
                CHECK(fixture_is(got + (row - 1) * widths[w], row * ROW + 1, widths[w]));
            free(got);
        }
        st_close(checkpoint);
    }
}

static void more_than_a_window(void) {
    /* 3 MiB of which every other KiB is taken: several windows of 1 MiB. */
    enum { ROWS = 3072, ROW = 1024 };
    const fixture_tensor tensors[] = {{"t", "F16", "[3072,2,256]", ROWS * ROW, NULL}};
    const fixture fixture = {tensors, 1, NULL, 0};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture, fixture_storages[s], 0);
        const st_range ranges[] = {{0, ST_END}, {1, 2}};
        unsigned char *got = malloc(ROWS * ROW / 2);
        CHECK(got);
        OK(st_tensor_read(checkpoint, 0, ranges, 2, got, ROWS * ROW / 2, &err));
        for (size_t row = 0; row < ROWS; row++)
            CHECK(fixture_is(got + row * (ROW / 2), row * ROW + ROW / 2, ROW / 2));
        free(got);
        st_close(checkpoint);
    }
}

static void dst_too_small_is_told_with_both_numbers(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    unsigned char dst[SAMPLE_WEIGHT_SIZE];
    memset(dst, 0xaa, sizeof(dst));
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, dst, SAMPLE_WEIGHT_SIZE - 1, &err));
    SAYS("80");
    SAYS("79");
    SAYS("\"weight\"");
    const st_range column[] = {{0, ST_END}, {1, 2}};
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, SAMPLE_WEIGHT, column, 2, dst, 15, &err));
    SAYS("16");
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, dst, 0, &err));
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, NULL, 0, &err));
    for (size_t i = 0; i < sizeof(dst); i++)
        CHECK(dst[i] == 0xaa);
    st_close(checkpoint);
}

static void dst_larger_than_needed_keeps_its_end(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    unsigned char dst[200];
    memset(dst, 0xaa, sizeof(dst));
    OK(st_tensor_read(checkpoint, SAMPLE_ODD, NULL, 0, dst, sizeof(dst), &err));
    CHECK(fixture_is(dst, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    for (size_t i = SAMPLE_ODD_SIZE; i < sizeof(dst); i++)
        CHECK(dst[i] == 0xaa);
    st_close(checkpoint);
}

static void dst_of_negative_length_is_refused(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    unsigned char dst[SAMPLE_WEIGHT_SIZE];
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, dst, (size_t)-1, &err));
    st_close(checkpoint);
}

static void nothing_needs_no_dst(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        const st_range none = {2, 2};
        OK(st_tensor_read(checkpoint, SAMPLE_EMPTY, NULL, 0, NULL, 0, &err));
        OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, &none, 1, NULL, 0, &err));
        st_close(checkpoint);
    }
}

static void tensor_onto_itself(void) {
    /* Silly, but not undefined: in memory, source and destination overlap. */
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_MEMORY, 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, (void *)(uintptr_t)data, SAMPLE_WEIGHT_SIZE, &err));
    CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(slices_against_a_naive_loop),
    CASE(columns_across_large_gaps),
    CASE(more_than_a_window),
    CASE(dst_too_small_is_told_with_both_numbers),
    CASE(dst_larger_than_needed_keeps_its_end),
    CASE(dst_of_negative_length_is_refused),
    CASE(nothing_needs_no_dst),
    CASE(tensor_onto_itself),
};

TEST_MAIN(cases)
