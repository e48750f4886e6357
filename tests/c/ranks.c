#include "fixture.h"
#include "test.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANK = 4 };

/* Ranges full of what no call would write. */
static void spoil(st_range ranges[MOST_RANK]) {
    memset(ranges, 0x77, MOST_RANK * sizeof(ranges[0]));
}

static bool is_spoiled(const st_range ranges[MOST_RANK]) {
    st_range untouched[MOST_RANK];
    spoil(untouched);
    return memcmp(ranges, untouched, sizeof(untouched)) == 0;
}

static bool is_range(st_range range, uint64_t start, uint64_t stop) {
    return range.start == start && range.stop == stop;
}

/* A call that fails, and writes no range. */
#define REFUSES(status, layout, shape, rank, fragment)                                                                 \
    do {                                                                                                               \
        st_range untouched[MOST_RANK];                                                                                 \
        spoil(untouched);                                                                                              \
        FAILS(status, st_layout_ranges(layout, shape, rank, 0, untouched, &err));                                      \
        SAYS(fragment);                                                                                                \
        CHECK(is_spoiled(untouched));                                                                                  \
    } while (0)

/* --- st_split_range ------------------------------------------------------------------------------------------------------- */

static void split_range_is_that_of_array_split(void) {
    /* numpy.array_split(range(10), 4) and so on. */
    static const struct {
        uint64_t dim;
        uint32_t world;
        uint64_t stops[5];
    } splits[] = {
        {10, 4, {3, 6, 8, 10}}, {8, 4, {2, 4, 6, 8}}, {2, 4, {1, 2, 2, 2}}, {0, 3, {0, 0, 0}}, {5, 1, {5}},
        {11, 5, {3, 5, 7, 9, 11}},
    };
    for (size_t i = 0; i < LEN(splits); i++)
        for (uint32_t rank = 0; rank < splits[i].world; rank++) {
            st_range range = {99, 99};
            OK(st_split_range(splits[i].dim, rank, splits[i].world, &range, &err));
            CHECK(is_range(range, rank ? splits[i].stops[rank - 1] : 0, splits[i].stops[rank]));
        }
}

static void split_range_of_the_largest_numbers(void) {
    st_range range;
    OK(st_split_range(UINT64_MAX, 0, 1, &range, &err));
    CHECK(is_range(range, 0, UINT64_MAX));
    OK(st_split_range(UINT64_MAX, UINT32_MAX - 1, UINT32_MAX, &range, &err));
    CHECK(is_range(range, UINT64_MAX - 4294967297u, UINT64_MAX));
}

static void split_range_refuses_ranks_that_are_not_there(void) {
    static const struct {
        uint32_t rank, world;
        const char *says;
    } outside[] = {
        {4, 4, "rank 4 among 4"}, {0, 0, "rank 0 among 0"}, {UINT32_MAX, 2, "rank 4294967295 among 2"}, {7, 0, "rank 7 among 0"},
    };
    for (size_t i = 0; i < LEN(outside); i++) {
        st_range range = {99, 99};
        FAILS(ST_ERR_OUT_OF_RANGE, st_split_range(10, outside[i].rank, outside[i].world, &range, &err));
        SAYS(outside[i].says);
        CHECK(is_range(range, 99, 99));
    }
}

/* --- st_layout_ranges ----------------------------------------------------------------------------------------------------- */

/* Devices 2 x 4; dimension 0 over the last axis, dimension 1 over none. */
static const uint64_t matrix[] = {2, 4};
static const int64_t rows[] = {0, -1};
static const uint64_t shape[] = {16, 8};

static st_layout layout_of_rows(void) {
    st_layout layout = ST_LAYOUT_INIT;
    layout.device_matrix = matrix;
    layout.device_dims = LEN(matrix);
    layout.tensor_map = rows;
    layout.tensor_map_len = LEN(rows);
    return layout;
}

static void layout_ranges_of_one_axis_per_dimension(void) {
    const st_layout layout = layout_of_rows();
    for (uint32_t rank_id = 0; rank_id < 20; rank_id++) {
        st_range ranges[MOST_RANK];
        spoil(ranges);
        OK(st_layout_ranges(&layout, shape, 2, rank_id, ranges, &err));
        const uint64_t part = rank_id % 4;
        CHECK(is_range(ranges[0], part * 4, part * 4 + 4) && is_range(ranges[1], 0, 8));
        /* As many ranges as dimensions, and no more. */
        ranges[0] = ranges[1] = ranges[2];
        CHECK(is_spoiled(ranges));
    }
}

static void layout_ranges_of_several_axes_for_a_dimension(void) {
    /* Dimension 0 over axes 2 and 0 of 2 x 3 x 2, the first the most significant; dimension 1 over none; dimension 2 over axis 1. */
    static const uint64_t devices[] = {2, 3, 2}, cube[] = {8, 5, 6};
    static const int64_t map[] = {2, 0, -1, 1};
    static const size_t starts[] = {0, 2, 3, 4};
    st_layout layout = ST_LAYOUT_INIT;
    layout.device_matrix = devices;
    layout.device_dims = 3;
    layout.tensor_map = map;
    layout.tensor_map_starts = starts;
    layout.tensor_map_len = 4;
    for (uint32_t rank_id = 0; rank_id < 12; rank_id++) {
        const uint64_t first = rank_id / 6, second = rank_id / 2 % 3, third = rank_id % 2;
        st_range ranges[3];
        OK(st_layout_ranges(&layout, cube, 3, rank_id, ranges, &err));
        CHECK(is_range(ranges[0], (first * 2 + third) * 2, (first * 2 + third) * 2 + 2));
        CHECK(is_range(ranges[1], 0, 5) && is_range(ranges[2], second * 2, second * 2 + 2));
    }
    /* A dimension without entries is not split, and neither is one whose only entry is -1. */
    static const size_t none_for_the_last[] = {0, 2, 4, 4};
    static const int64_t ends_in_none[] = {2, 0, 1, -1};
    static const uint64_t other[] = {8, 3, 5};
    layout.tensor_map = ends_in_none;
    layout.tensor_map_starts = none_for_the_last;
    st_range ranges[3];
    OK(st_layout_ranges(&layout, other, 3, 11, ranges, &err));
    CHECK(is_range(ranges[0], 6, 8) && is_range(ranges[1], 2, 3) && is_range(ranges[2], 0, 5));
}

static void layout_ranges_with_an_optimizer_shard(void) {
    st_layout layout = layout_of_rows();
    const int64_t shards[] = {2, -1};
    for (size_t i = 0; i < LEN(shards); i++) {
        layout.optimizer_shard = shards[i];
        for (uint32_t rank_id = 0; rank_id < 8; rank_id++) {
            st_range ranges[2];
            OK(st_layout_ranges(&layout, shape, 2, rank_id, ranges, &err));
            const uint64_t start = rank_id % 4 * 4 + rank_id / 4 * 2;
            CHECK(is_range(ranges[0], start, start + 2) && is_range(ranges[1], 0, 8));
        }
    }
}

static void layout_ranges_of_scalars_and_of_nothing(void) {
    st_layout layout = layout_of_rows();
    const uint64_t none[] = {0, 8};
    st_range ranges[2];
    OK(st_layout_ranges(&layout, none, 2, 5, ranges, &err));
    CHECK(is_range(ranges[0], 0, 0) && is_range(ranges[1], 0, 8));
    /* Without dimensions there is nothing to point to. */
    const size_t starts[] = {0};
    layout.tensor_map = NULL;
    layout.tensor_map_len = 0;
    OK(st_layout_ranges(&layout, NULL, 0, 5, NULL, &err));
    layout.tensor_map_starts = starts;
    OK(st_layout_ranges(&layout, NULL, 0, 5, NULL, &err));
    layout.optimizer_shard = -1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_layout_ranges(&layout, NULL, 0, 5, NULL, &err));
    SAYS("none");
}

static void device_matrix_that_is_none(void) {
    static const uint64_t zero[] = {2, 0}, overflow[] = {1ull << 32, 1ull << 32}, ones[65] = {1};
    st_layout layout = layout_of_rows();
    layout.device_dims = 0;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "empty");
    layout.device_dims = 2;
    layout.device_matrix = zero;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "device_matrix[1] is 0");
    layout.device_matrix = overflow;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "64 bits");
    layout.device_matrix = ones;
    layout.device_dims = 65;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "65 axes");
    SAYS("64");
}

static void tensor_map_that_does_not_fit(void) {
    static const struct {
        int64_t map[2];
        const char *says[2];
    } wrong[] = {
        {{-1, 2}, {"axis 2 for dimension 1", "0 to 1"}},   {{-2, 0}, {"axis -2 for dimension 0", "0 to 1"}},
        {{0, 0}, {"axis 0", "again for dimension 1"}},     {{INT64_MAX, 0}, {"axis 9223372036854775807", "dimension 0"}},
        {{1, INT64_MIN}, {"axis -9223372036854775808", "dimension 1"}},
    };
    st_layout layout = layout_of_rows();
    for (size_t i = 0; i < LEN(wrong); i++) {
        layout.tensor_map = wrong[i].map;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, wrong[i].says[0]);
        SAYS(wrong[i].says[1]);
    }
}

static void tensor_map_of_another_number_of_dimensions(void) {
    const st_layout layout = layout_of_rows();
    const uint64_t cube[] = {16, 8, 4};
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, cube, 3, "2 entries");
    SAYS("3 dimensions");
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 1, "1 dimensions");
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, NULL, 0, "0 dimensions");
}

static void starts_that_do_not_fit(void) {
    static const int64_t map[] = {1, 0};
    static const struct {
        size_t starts[3];
        const char *says;
    } wrong[] = {
        {{1, 1, 2}, "begins with 1"},
        {{0, 1, 1}, "ends with 1, not with the 2 entries"},
        {{0, 1, 3}, "ends with 3, not with the 2 entries"},
        {{0, 3, 2}, "dimension 0 the entries from 0 to 3 of 2"},
        {{0, SIZE_MAX, 2}, "dimension 0 the entries from 0 to 18446744073709551615 of 2"},
    };
    st_layout layout = layout_of_rows();
    layout.tensor_map = map;
    for (size_t i = 0; i < LEN(wrong); i++) {
        layout.tensor_map_starts = wrong[i].starts;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, wrong[i].says);
    }
    static const size_t falls[] = {0, 2, 1, 2}, both_first[] = {0, 2, 2};
    const uint64_t cube[] = {16, 8, 4};
    layout.tensor_map_starts = falls;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, cube, 3, "dimension 1 the entries from 2 to 1");
    /* -1 may only be the last of several. */
    static const int64_t none_first[] = {-1, 0};
    layout.tensor_map = none_first;
    layout.tensor_map_starts = both_first;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "dimension 0 after a -1");
}

static void optimizer_shard_that_makes_no_whole(void) {
    static const struct {
        int64_t shard;
        const char *says;
    } wrong[] = {
        {-2, "-2"}, {INT64_MIN, "-9223372036854775808"}, {3, "3 parts"}, {4, "4 parts"}, {8, "8 parts"},
        {INT64_MAX, "9223372036854775807 parts"},
    };
    st_layout layout = layout_of_rows();
    for (size_t i = 0; i < LEN(wrong); i++) {
        layout.optimizer_shard = wrong[i].shard;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, wrong[i].says);
        if (wrong[i].shard > 0)
            SAYS("the 2 ranks");
    }
}

static void dimensions_that_do_not_divide(void) {
    st_layout layout = layout_of_rows();
    const uint64_t odd[] = {6, 8}, small[] = {4, 8};
    REFUSES(ST_ERR_NOT_DIVISIBLE, &layout, odd, 2, "6 elements of dimension 0");
    SAYS("4 equal parts");
    /* A row per rank is left, which cannot be halved. */
    layout.optimizer_shard = 2;
    REFUSES(ST_ERR_NOT_DIVISIBLE, &layout, small, 2, "1 elements of dimension 0");
    SAYS("2 equal parts");
    static const int64_t columns[] = {-1, 0};
    const uint64_t narrow[] = {6, 7};
    layout = layout_of_rows();
    layout.tensor_map = columns;
    REFUSES(ST_ERR_NOT_DIVISIBLE, &layout, narrow, 2, "7 elements of dimension 1");
}

/* Each array in memory of its own size: a length that is garbage must be refused before the array is read. */
static void lengths_that_are_garbage(void) {
    const size_t garbage[] = {100, 1 << 20, (size_t)1 << 60, PTRDIFF_MAX, SIZE_MAX - 1, SIZE_MAX};
    uint64_t *one_device = malloc(sizeof(*one_device));
    int64_t *one_entry = malloc(sizeof(*one_entry));
    size_t *one_start = malloc(sizeof(*one_start));
    CHECK(one_device && one_entry && one_start);
    *one_device = 2;
    *one_entry = 0;
    *one_start = 0;
    for (size_t i = 0; i < LEN(garbage); i++) {
        st_layout layout = ST_LAYOUT_INIT;
        layout.device_matrix = one_device;
        layout.device_dims = garbage[i];
        layout.tensor_map = one_entry;
        layout.tensor_map_len = 1;
        char number[32];
        snprintf(number, sizeof(number), "%zu", garbage[i]);
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 1, number);
        layout.device_dims = 1;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, garbage[i], number);
        layout.tensor_map_len = garbage[i];
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 1, number);
        layout.tensor_map_starts = one_start;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 1, number);
        /* Longer than any object can be; what is shorter only the caller can know. */
        layout.tensor_map_len = 1;
        if (garbage[i] > PTRDIFF_MAX / 16)
            REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, garbage[i], "cannot have");
    }
    free(one_device);
    free(one_entry);
    free(one_start);
}

static void nulls(void) {
    st_layout layout = layout_of_rows();
    st_range ranges[MOST_RANK];
    FAILS(ST_ERR_INVALID_ARGUMENT, st_split_range(10, 0, 1, NULL, &err));
    SAYS("out is NULL");
    REFUSES(ST_ERR_INVALID_ARGUMENT, NULL, shape, 2, "layout is NULL");
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, NULL, 2, "shape is NULL");
    FAILS(ST_ERR_INVALID_ARGUMENT, st_layout_ranges(&layout, shape, 2, 0, NULL, &err));
    SAYS("ranges is NULL");
    layout.device_matrix = NULL;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "device_matrix is NULL");
    layout = layout_of_rows();
    layout.tensor_map = NULL;
    REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, "tensor_map is NULL");
    /* Without an st_error the status is all there is. */
    st_range range;
    CHECK(st_split_range(10, 1, 1, &range, NULL) == ST_ERR_OUT_OF_RANGE && st_split_range(10, 0, 1, &range, NULL) == ST_OK);
    CHECK(st_layout_ranges(NULL, shape, 2, 0, ranges, NULL) == ST_ERR_INVALID_ARGUMENT);
    layout = layout_of_rows();
    CHECK(st_layout_ranges(&layout, shape, 2, 0, ranges, NULL) == ST_OK);
}

/* --- struct_size ---------------------------------------------------------------------------------------------------------- */

static void init_and_zero_are_the_defaults(void) {
    st_layout init = ST_LAYOUT_INIT, zeroed;
    memset(&zeroed, 0, sizeof(zeroed));
    zeroed.struct_size = sizeof(zeroed);
    CHECK(memcmp(&init, &zeroed, sizeof(init)) == 0);
    /* A layout has no devices by default: whoever forgets to say them must not get a whole tensor. */
    REFUSES(ST_ERR_INVALID_ARGUMENT, &init, NULL, 0, "the device matrix is empty");
}

static void struct_size_of_no_version_is_refused(void) {
    const size_t sizes[] = {0, 1, 8, sizeof(st_layout) - 1, 1 << 20, (size_t)INT_MAX, SIZE_MAX};
    for (size_t i = 0; i < LEN(sizes); i++) {
        st_layout layout = layout_of_rows();
        layout.struct_size = sizes[i];
        char number[32];
        snprintf(number, sizeof(number), "%zu", sizes[i]);
        REFUSES(ST_ERR_INVALID_ARGUMENT, &layout, shape, 2, number);
    }
}

/* As a program that was compiled against a later header would have it. */
struct later {
    st_layout known;
    unsigned char unknown[48];
};

static void later_layouts_are_taken_if_they_use_nothing_new(void) {
    for (size_t size = sizeof(st_layout); size <= sizeof(struct later); size++) {
        struct later later = {layout_of_rows(), {0}};
        later.known.struct_size = size;
        /* What lies after the struct is none of the library's business. */
        memset((char *)&later + size, 0xff, sizeof(later) - size);
        st_range ranges[2];
        OK(st_layout_ranges(&later.known, shape, 2, 7, ranges, &err));
        CHECK(is_range(ranges[0], 12, 16) && is_range(ranges[1], 0, 8));
    }
    for (size_t i = 0; i < sizeof(((struct later *)0)->unknown); i++) {
        struct later later = {layout_of_rows(), {0}};
        later.known.struct_size = sizeof(later);
        later.unknown[i] = 1;
        REFUSES(ST_ERR_INVALID_ARGUMENT, &later.known, shape, 2, ST_VERSION);
    }
}

/* --- what it is for: a tensor read by all ranks --------------------------------------------------------------------------- */

enum { HEIGHT = 8, WIDTH = 6, ELEMENT = 4, WHOLE = HEIGHT * WIDTH * ELEMENT };
static const fixture_tensor tall_tensors[] = {{"before", "U8", "[5]", 5, NULL}, {"tall", "F32", "[8,6]", WHOLE, NULL}};
static const fixture tall = {tall_tensors, 2, NULL, 0};
enum { TALL = 1, TALL_AT = 5 };

/* Reads what one rank has, and puts it where it belongs in the whole. Counts for each element the ranks that had it. */
static void read_part(st_checkpoint *checkpoint, const st_range *ranges, size_t rank, unsigned char *whole, int *holders) {
    unsigned char part[WHOLE];
    const size_t height = (size_t)(ranges[0].stop - ranges[0].start), first = (size_t)ranges[0].start;
    const size_t width = rank > 1 ? (size_t)(ranges[1].stop - ranges[1].start) : WIDTH, left = rank > 1 ? (size_t)ranges[1].start : 0;
    /* No more room than the part needs. */
    OK(st_tensor_read(checkpoint, TALL, ranges, rank, part, height * width * ELEMENT, &err));
    for (size_t i = 0; i < height; i++)
        for (size_t j = 0; j < width; j++) {
            const size_t element = (first + i) * WIDTH + left + j;
            memcpy(whole + element * ELEMENT, part + (i * width + j) * ELEMENT, ELEMENT);
            holders[element]++;
        }
}

static void check_whole(const unsigned char *whole, const int *holders, int each) {
    CHECK(fixture_is(whole, TALL_AT, WHOLE));
    for (size_t i = 0; i < HEIGHT * WIDTH; i++)
        CHECK(holders[i] == each);
}

static void tensor_split_over_ranks_is_whole_again(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&tall, fixture_storages[s], 0);
        st_tensor tensor;
        OK(st_tensor_info(checkpoint, TALL, &tensor, &err));
        /* More ranks than rows too: the last ones read nothing. */
        for (uint32_t world = 1; world <= 11; world++) {
            unsigned char whole[WHOLE] = {0};
            int holders[HEIGHT * WIDTH] = {0};
            for (uint32_t rank = 0; rank < world; rank++) {
                st_range range;
                OK(st_split_range(tensor.shape[0], rank, world, &range, &err));
                read_part(checkpoint, &range, 1, whole, holders);
            }
            check_whole(whole, holders, 1);
        }
        st_close(checkpoint);
    }
}

static void tensor_laid_out_over_ranks_is_whole_again(void) {
    static const uint64_t devices[] = {2, 2, 3};
    static const struct {
        int64_t map[3];
        size_t starts[3], len;
        int64_t optimizer_shard;
        int each;
    } layouts[] = {
        {{1, 0}, {0, 1, 2}, 2, 0, 2},    {{1, 0}, {0, 1, 2}, 2, -1, 1},   {{-1, 0}, {0, 1, 2}, 2, 2, 2},
        {{2, 1, 0}, {0, 2, 3}, 3, 0, 1}, {{1, 2, 0}, {0, 2, 3}, 3, 0, 1}, {{-1, -1}, {0, 1, 2}, 2, 0, 12},
        {{-1, -1}, {0, 1, 2}, 2, 4, 3},  {{2, 0, -1}, {0, 1, 3}, 3, 2, 1},
    };
    st_checkpoint *checkpoint = fixture_open(&tall, ST_STORAGE_AUTO, 0);
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, TALL, &tensor, &err));
    for (size_t i = 0; i < LEN(layouts); i++) {
        st_layout layout = ST_LAYOUT_INIT;
        layout.device_matrix = devices;
        layout.device_dims = LEN(devices);
        layout.tensor_map = layouts[i].map;
        layout.tensor_map_starts = layouts[i].starts;
        layout.tensor_map_len = layouts[i].len;
        layout.optimizer_shard = layouts[i].optimizer_shard;
        unsigned char whole[WHOLE] = {0};
        int holders[HEIGHT * WIDTH] = {0};
        for (uint32_t rank_id = 0; rank_id < 12; rank_id++) {
            st_range ranges[2];
            OK(st_layout_ranges(&layout, tensor.shape, tensor.rank, rank_id, ranges, &err));
            read_part(checkpoint, ranges, 2, whole, holders);
        }
        check_whole(whole, holders, layouts[i].each);
    }
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(split_range_is_that_of_array_split),
    CASE(split_range_of_the_largest_numbers),
    CASE(split_range_refuses_ranks_that_are_not_there),
    CASE(layout_ranges_of_one_axis_per_dimension),
    CASE(layout_ranges_of_several_axes_for_a_dimension),
    CASE(layout_ranges_with_an_optimizer_shard),
    CASE(layout_ranges_of_scalars_and_of_nothing),
    CASE(device_matrix_that_is_none),
    CASE(tensor_map_that_does_not_fit),
    CASE(tensor_map_of_another_number_of_dimensions),
    CASE(starts_that_do_not_fit),
    CASE(optimizer_shard_that_makes_no_whole),
    CASE(dimensions_that_do_not_divide),
    CASE(lengths_that_are_garbage),
    CASE(nulls),
    CASE(init_and_zero_are_the_defaults),
    CASE(struct_size_of_no_version_is_refused),
    CASE(later_layouts_are_taken_if_they_use_nothing_new),
    CASE(tensor_split_over_ranks_is_whole_again),
    CASE(tensor_laid_out_over_ranks_is_whole_again),
};

TEST_MAIN(cases)
