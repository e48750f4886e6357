#include "throws.hpp"

#include <cstdint>
#include <vector>

#include "../c/dlpack_abi.h"

static const float numbers[] = {0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23};
static const std::uint16_t halves[] = {0x3f80, 0x4000, 0x4040};
/* One dimension more than a view can hold. */
static const char deep_shape[] = "[2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
                                 "1,1,1,1,1,1,1,1,1,1,1,1,1,1]";
static const fixture_tensor tensors[] = {
    {"m", "F32", "[3,4]", sizeof(numbers), numbers}, {"s", "F32", "[]", 4, numbers + 6},
    {"bf16", "BF16", "[3]", sizeof(halves), halves}, {"f4", "F4", "[2,4]", 4, nullptr},
    {"none", "F64", "[0,18446744073709551615]", 0, nullptr}, {"deep", "U8", deep_shape, 2, nullptr},
};
static const fixture file = {tensors, LEN(tensors), nullptr, 0};

/* Ranges and shape lie in the slice: a temporary gives the first away, and the second to nobody. */
COMPILES(has_shape, std::declval<X>().shape());
static_assert(has_shape<const st::Slice &>::value && !has_shape<st::Slice>::value, "");
static_assert(std::is_same_v<decltype(std::declval<const st::Slice &>().ranges()), const st::Ranges &>);
static_assert(std::is_same_v<decltype(std::declval<st::Slice>().ranges()), st::Ranges>);
static_assert(!std::is_constructible_v<st::Slice, st::Tensor, st::Ranges> && !std::is_default_constructible_v<st::Slice>,
              "a slice has been checked");

static bool is(const std::vector<float> &elements, const std::vector<float> &expected) {
    return elements == expected;
}

static void tells_what_it_is() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Slice slice = checkpoint["m"].slice({st::whole, {1, ST_END}});
    CHECK(slice.tensor().name() == "m" && slice.nbytes() == 36);
    CHECK(slice.shape().size() == 2 && slice.shape()[0] == 3 && slice.shape()[1] == 3);
    CHECK(slice.ranges()[0].start == 0 && slice.ranges()[0].stop == 3);
    CHECK(slice.ranges()[1].start == 1 && slice.ranges()[1].stop == 4);
    CHECK(checkpoint["m"].slice({{2, 3}}).ranges().size() == 2 && checkpoint["m"].slice().nbytes() == 48);
    CHECK(checkpoint["s"].slice().nbytes() == 4 && checkpoint["s"].slice().ranges().empty());
    const st::Slice whole = checkpoint["none"].slice();
    CHECK(whole.nbytes() == 0 && whole.shape()[1] == UINT64_MAX);
}

static void is_checked_when_made() {
    /* Before a byte is read: over this storage a view would need a copy, for which there is no room. */
    const st::Checkpoint checkpoint = open_fixture(file, {ST_STORAGE_READ, 0, 1});
    THROWS(ST_ERR_OUT_OF_RANGE, "[0, 4)", checkpoint["m"].slice({{0, 4}}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", checkpoint["m"].slice({{2, 1}}));
    THROWS(ST_ERR_OUT_OF_RANGE, "3 ranges", checkpoint["m"].slice({st::whole, st::whole, st::whole}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"s\"", checkpoint["s"].slice({st::whole}));
    THROWS(ST_ERR_MISALIGNED, "\"f4\"", checkpoint["f4"].slice({st::whole, {1, 3}}));
    CHECK(checkpoint["f4"].slice({{1, 2}, {2, 4}}).nbytes() == 1);
    CHECK(checkpoint["m"].slice({{3, 3}}).nbytes() == 0 && checkpoint.residency().misses == 0);
}

static void reads_what_is_asked_for() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Tensor m = checkpoint["m"];
    CHECK(is(m.slice({{1, 2}}).read<float>(), {10, 11, 12, 13}));
    CHECK(is(m.slice({{1, 3}, {1, 3}}).read<float>(), {11, 12, 21, 22}));
    CHECK(is(m.slice({st::whole, {3, 4}}).read<float>(), {3, 13, 23}));
    CHECK(m.slice({{1, 1}}).read<float>().empty() && checkpoint["none"].slice().read<double>().empty());
    CHECK(is(checkpoint["s"].slice().read<float>(), {12}));
    CHECK(checkpoint["deep"].slice({{1, 2}}).read<std::uint8_t>().size() == 1);
    float corner = 0;
    m.slice({{2, 3}, {3, 4}}).read(&corner, sizeof(corner));
    CHECK(corner == 23);
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "16", m.slice({{0, 1}}).read(&corner, sizeof(corner)));
}

static void reads_are_typed() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Slice slice = checkpoint["bf16"].slice({{1, 3}});
    CHECK((slice.read_bits<std::uint16_t>() == std::vector<std::uint16_t>{0x4000, 0x4040}));
    CHECK(slice.read_bits<std::int16_t>()[0] == 0x4000);
    THROWS(ST_ERR_UNSUPPORTED, "BF16", slice.read<std::uint16_t>());
    THROWS(ST_ERR_UNSUPPORTED, "16 bits", slice.read_bits<float>());
    THROWS(ST_ERR_UNSUPPORTED, "F32", checkpoint["m"].slice().read<double>());
    THROWS(ST_ERR_UNSUPPORTED, "4 bits", checkpoint["f4"].slice().read_bits<std::uint8_t>());
}

static void views_in_place() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::View columns = checkpoint["m"].slice({st::whole, {1, 3}}).view();
    CHECK(!columns.contiguous() && columns.at<float>({2, 1}) == 22);
    const st::View row = checkpoint["m"].slice({{1, 2}}).view();
    CHECK(row.data<float>().data() == checkpoint["m"].data<float>().data() + 4);
    THROWS(ST_ERR_UNSUPPORTED, "\"deep\"", checkpoint["deep"].slice().view());
}

static void dlpack_is_owned_by_the_caller() {
    DLManagedTensorVersioned *managed;
    DLManagedTensor *old;
    {
        const st::Checkpoint checkpoint = open_fixture(file);
        managed = checkpoint["m"].slice({{1, 3}}).dlpack();
        old = checkpoint["m"].slice({{0, 1}}).dlpack_unversioned();
    }
    CHECK(managed->dl_tensor.shape[0] == 2 && *static_cast<const float *>(managed->dl_tensor.data) == 10);
    CHECK(old->dl_tensor.shape[0] == 1 && *static_cast<const float *>(old->dl_tensor.data) == 0);
    managed->deleter(managed);
    old->deleter(old);
}

static void shards_make_the_whole() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Tensor m = checkpoint["m"];
    CHECK(is(m.shard(0, 0, 2).read<float>(), {0, 1, 2, 3, 10, 11, 12, 13}));
    CHECK(is(m.shard(1, 0, 3).read<float>(), {0, 1, 10, 11, 20, 21}) && is(m.shard(1, 1, 3).read<float>(), {2, 12, 22}));
    for (std::uint32_t world : {1u, 2u, 3u, 5u, 4000000000u}) {
        std::vector<float> all;
        for (std::uint32_t rank = 0; rank < (world > 100 ? 100 : world); rank++) {
            const std::vector<float> part = m.shard(0, rank, world).read<float>();
            all.insert(all.end(), part.begin(), part.end());
        }
        CHECK(is(all, {numbers, numbers + 12}));
    }
    CHECK(m.shard(0, 4, 5).nbytes() == 0);
    const st::Slice huge = checkpoint["none"].shard(1, 1, 2);
    CHECK(huge.shape()[1] == UINT64_MAX / 2 && huge.ranges()[1].stop == UINT64_MAX);
}

static void shards_that_are_not_there() {
    const st::Checkpoint checkpoint = open_fixture(file);
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\" has no dimension 2", checkpoint["m"].shard(2, 0, 1));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"s\"", checkpoint["s"].shard(0, 0, 1));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", checkpoint["m"].shard(0, 2, 2));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", checkpoint["m"].shard(0, 0, 0));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", checkpoint["m"].shard(SIZE_MAX, 0, 1));
    THROWS(ST_ERR_MISALIGNED, "\"f4\"", checkpoint["f4"].shard(1, 0, 4));
}

static void layouts() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Tensor m = checkpoint["m"];
    /* Columns over the first of two axes. */
    const std::uint64_t devices[] = {2, 3};
    const std::int64_t columns[] = {-1, 1};
    st_layout layout = ST_LAYOUT_INIT;
    layout.device_matrix = devices;
    layout.device_dims = LEN(devices);
    layout.tensor_map = columns;
    layout.tensor_map_len = LEN(columns);
    CHECK(is(m.layout(layout, 0).read<float>(), {0, 1, 10, 11, 20, 21}));
    CHECK(is(m.layout(layout, 5).read<float>(), {2, 3, 12, 13, 22, 23}));
    const std::int64_t both[] = {0, 1};
    layout.tensor_map = both;
    CHECK(is(m.layout(layout, 4).read<float>(), {12, 13}));
    const std::int64_t uneven[] = {1, 0};
    layout.tensor_map = uneven;
    THROWS(ST_ERR_NOT_DIVISIBLE, "tensor \"m\": ", m.layout(layout, 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "tensor \"s\": ", checkpoint["s"].layout(layout, 0));
    layout.tensor_map_len = 0;
    CHECK(checkpoint["s"].layout(layout, 3).nbytes() == 4);
}

static void can_be_copied_and_moved() {
    const st::Checkpoint checkpoint = open_fixture(file);
    std::vector<st::Slice> parts;
    for (std::uint32_t rank = 0; rank < 3; rank++)
        parts.push_back(checkpoint["m"].shard(0, rank, 3));
    const st::Slice copy = parts[1];
    parts[1] = parts[2];
    CHECK(is(copy.read<float>(), {10, 11, 12, 13}) && parts[1].read<float>()[3] == 23);
    const st::Ranges ranges = std::move(parts[0]).ranges();
    CHECK(ranges.size() == 2 && ranges[0].stop == 1);
}

static const test_case cases[] = {
    CASE(tells_what_it_is),
    CASE(is_checked_when_made),
    CASE(reads_what_is_asked_for),
    CASE(reads_are_typed),
    CASE(views_in_place),
    CASE(dlpack_is_owned_by_the_caller),
    CASE(shards_make_the_whole),
    CASE(shards_that_are_not_there),
    CASE(layouts),
    CASE(can_be_copied_and_moved),
};

TEST_MAIN(cases)
