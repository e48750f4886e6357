#include "throws.hpp"

#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

static const fixture_tensor tensors[] = {
    {"cube", "I16", "[3,4,5]", 120, nullptr}, {"f4", "F4", "[4,4]", 8, nullptr},
    {"f6", "F6_E2M3", "[2,4]", 6, nullptr},   {"flat", "F32", "[2,0,3]", 0, nullptr},
    {"scalar", "U8", "[]", 1, nullptr},       {"askew", "F32", "[2,2]", 16, nullptr},
};
static const fixture several = {tensors, LEN(tensors), nullptr, 0};

static_assert(!std::is_copy_constructible_v<st::Pin> && !std::is_copy_assignable_v<st::Pin>);
static_assert(std::is_nothrow_move_constructible_v<st::Pin> && std::is_nothrow_move_assignable_v<st::Pin>);
static_assert(!std::is_constructible_v<st::Pin, st::Tensor> && !std::is_default_constructible_v<st::Pin>);

/* A temporary pin would release what it gives at once. */
COMPILES(has_tensor, std::declval<X>().tensor());
COMPILES(has_address, std::declval<X>().data());
COMPILES(has_data, std::declval<X>().template data<float>());
COMPILES(has_bits, std::declval<X>().template bits<float>());
COMPILES(has_bytes, std::declval<X>().bytes());
COMPILES(has_view, std::declval<X>().view());
COMPILES(has_nbytes, std::declval<X>().nbytes());
template <template <class, class> class Has>
inline constexpr bool only_of_lasting_ones =
    Has<const st::Pin &, void>::value && !Has<st::Pin, void>::value && !Has<const st::Pin, void>::value;
static_assert(only_of_lasting_ones<has_tensor> && only_of_lasting_ones<has_address> && only_of_lasting_ones<has_data>);
static_assert(only_of_lasting_ones<has_bits> && only_of_lasting_ones<has_bytes> && only_of_lasting_ones<has_view>);
static_assert(has_nbytes<st::Pin>::value, "");

static void gives_what_a_tensor_gives() {
    for (int32_t storage : {ST_STORAGE_MMAP, ST_STORAGE_READ}) {
        const st::Checkpoint checkpoint = open_sample({storage, 0});
        const st::Pin pin = checkpoint["weight"].pin();
        CHECK(pin.tensor().name() == "weight" && pin.tensor().shape()[1] == 5 && pin.nbytes() == SAMPLE_WEIGHT_SIZE);
        CHECK(fixture_is(pin.data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        CHECK(pin.bytes().data() == pin.data() && pin.bytes().size() == SAMPLE_WEIGHT_SIZE);
        CHECK(pin.data<float>().size() == 20 && pin.data<float>().data() == pin.data());
        CHECK(pin.bits<std::uint32_t>().size() == 20);
        THROWS(ST_ERR_UNSUPPORTED, "\"weight\"", pin.data<double>());
        THROWS(ST_ERR_UNSUPPORTED, "32 bits", pin.bits<double>());
        const st::Pin empty = checkpoint["empty"].pin();
        CHECK(empty.data() && empty.bytes().empty() && empty.data<double>().empty());
        const st::Pin odd = checkpoint["odd"].pin();
        CHECK(fixture_is(odd.data<std::int32_t>().data(), SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    }
}

static void holds_as_long_as_it_lives() {
    const st::Checkpoint checkpoint = open_sample();
    const st::Tensor weight = checkpoint["weight"];
    {
        const st::Pin pin = weight.pin();
        CHECK(weight.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
        THROWS(ST_ERR_IN_USE, "\"weight\"", weight.evict());
        {
            const st::Pin second = weight.pin();
            CHECK(second.data() == pin.data() && checkpoint.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
        }
        CHECK(weight.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE && weight.residency().hits == 1);
    }
    CHECK(weight.residency().in_use_bytes == 0);
    weight.evict();
}

static void outlives_its_checkpoint() {
    for (int32_t storage : {ST_STORAGE_MMAP, ST_STORAGE_READ}) {
        std::optional<st::Pin> pin;
        {
            const st::Checkpoint checkpoint = open_sample({storage, 0});
            pin = checkpoint["weight"].pin();
        }
        CHECK(fixture_is(pin->data<float>().data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE) && pin->tensor().name() == "weight");
        CHECK(fixture_is(pin->view({{1, 2}}).data(), SAMPLE_WEIGHT_AT + 20, 20));
        std::thread thread([own = std::move(*pin)] { CHECK(own.nbytes() == SAMPLE_WEIGHT_SIZE); });
        thread.join();
    }
}

static void moves() {
    const st::Checkpoint checkpoint = open_sample();
    const st::Tensor weight = checkpoint["weight"], bias = checkpoint["bias"];
    st::Pin first = weight.pin();
    const void *data = first.data();
    st::Pin second = std::move(first);
    CHECK(second.data() == data && weight.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
    /* What is assigned to lets go of its own. */
    st::Pin third = bias.pin();
    third = std::move(second);
    CHECK(third.tensor().name() == "weight" && bias.residency().in_use_bytes == 0);
    CHECK(weight.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
    st::Pin &itself = third;
    third = std::move(itself);
    CHECK(third.data() == data && weight.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
    {
        std::vector<st::Pin> pins;
        for (st::Tensor tensor : checkpoint)
            pins.push_back(tensor.pin());
        CHECK(checkpoint.residency().in_use_bytes == SAMPLE_DATA_SIZE && pins[0].data() == data);
    }
    CHECK(checkpoint.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
}

static void moved_from_holds_nothing() {
    const st::Checkpoint checkpoint = open_sample();
    st::Pin first = checkpoint["weight"].pin();
    const st::Pin second = std::move(first);
    CHECK(!first.data() && first.bytes().empty() && first.nbytes() == 0);
    CHECK(first.tensor().name().empty() && first.tensor().shape().empty());
    THROWS(ST_ERR_INVALID_ARGUMENT, "moved from", first.data<float>());
    THROWS(ST_ERR_INVALID_ARGUMENT, "moved from", first.bits<float>());
    THROWS(ST_ERR_INVALID_ARGUMENT, "moved from", first.view());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.tensor().data());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.tensor().pin());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.tensor().slice());
    first = checkpoint["bias"].pin();
    CHECK(first.tensor().name() == "bias");
}

static void what_does_not_fit_is_an_exception() {
    for (int32_t storage : {ST_STORAGE_MMAP, ST_STORAGE_READ}) {
        const st::Checkpoint checkpoint = open_sample({storage, 0, SAMPLE_WEIGHT_SIZE + 11});
        const st::Pin pin = checkpoint["weight"].pin();
        THROWS(ST_ERR_BUDGET, "\"odd\"", checkpoint["odd"].pin());
        CHECK(checkpoint.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE);
        const st::Pin small = checkpoint["bias"].pin();
        CHECK(checkpoint.residency().charged_bytes == SAMPLE_WEIGHT_SIZE + 10);
    }
}

static void exceptions_leave_no_pin() {
    const st::Checkpoint checkpoint = open_sample();
    const auto fails = [&] {
        const st::Pin first = checkpoint["weight"].pin(), second = checkpoint["odd"].pin();
        std::vector<st::Pin> more;
        more.push_back(checkpoint["bias"].pin());
        CHECK(checkpoint.residency().in_use_bytes == SAMPLE_WEIGHT_SIZE + SAMPLE_ODD_SIZE + 10);
        return first.view({{0, 9}});
    };
    THROWS(ST_ERR_OUT_OF_RANGE, "[0, 9)", fails());
    CHECK(checkpoint.residency().in_use_bytes == 0);
}

static bool is_same_view(const st_view &a, const st_view &b) {
    return a.data == b.data && a.dtype == b.dtype && a.rank == b.rank && a.nbytes == b.nbytes && a.contiguous == b.contiguous &&
           std::memcmp(a.shape, b.shape, sizeof(a.shape)) == 0 && std::memcmp(a.strides, b.strides, sizeof(a.strides)) == 0;
}

/* Over a mapping both point to the same memory, so that the library's own views are the measure. */
static void views_are_those_of_the_library() {
    const st::Checkpoint checkpoint = open_fixture(several, {ST_STORAGE_MMAP, 0});
    const st_range all[] = {st::whole, {0, 1}, {1, 2}, {0, 2}, {1, 3}, {2, 4}, {1, 1}, {2, ST_END}};
    std::size_t compared = 0, refused = 0;
    for (st::Tensor tensor : checkpoint) {
        const st::Pin pin = tensor.pin();
        std::vector<st::Ranges> several_ranges = {{}};
        for (st_range first : all) {
            several_ranges.push_back({first});
            for (st_range second : all) {
                several_ranges.push_back({first, second});
                for (st_range third : all)
                    several_ranges.push_back({first, second, third});
            }
        }
        for (const st::Ranges &ranges : several_ranges) {
            st_view expected;
            st_error err;
            if (st_tensor_view(checkpoint.get(), tensor.index(), ranges.data(), ranges.size(), &expected, &err) == ST_OK) {
                const st::View view = pin.view(ranges);
                CHECK(is_same_view(view.c_view(), expected));
                ++compared;
            } else {
                THROWS(err.status, err.message, pin.view(ranges));
                ++refused;
            }
        }
    }
    CHECK(compared > 500 && refused > 500);
}

static void views_make_no_copy_that_stays() {
    const st::Checkpoint checkpoint = open_sample({ST_STORAGE_READ, 0});
    const st::Tensor weight = checkpoint["weight"], odd = checkpoint["odd"];
    {
        const st::Pin pin = weight.pin();
        const st::View rows = pin.view(weight.shard(0, 1, 2).ranges());
        CHECK(fixture_is(rows.data<float>().data(), SAMPLE_WEIGHT_AT + 40, 40));
        CHECK(rows.data() == static_cast<const char *>(pin.data()) + 40);
        const st::View column = pin.view({st::whole, {1, 2}});
        CHECK(!column.contiguous() && &column.at<float>({3, 0}) == pin.data<float>().data() + 16);
    }
    weight.evict();
    CHECK(checkpoint.residency().copied_bytes == 0);
    odd.view();
    THROWS(ST_ERR_IN_USE, "\"odd\"", odd.evict());
}

static void views_of_many_dimensions_are_refused() {
    static char shape[2 * (ST_MAX_RANK + 1) + 2] = "[1";
    for (int i = 1; i <= ST_MAX_RANK; i++)
        std::strcat(shape, ",1");
    std::strcat(shape, "]");
    const fixture_tensor deep = {"deep", "U8", shape, 1, nullptr};
    const st::Checkpoint checkpoint = open_fixture({&deep, 1, nullptr, 0});
    const st::Pin pin = checkpoint["deep"].pin();
    CHECK(pin.bytes().size() == 1);
    THROWS(ST_ERR_UNSUPPORTED, "\"deep\" has 65 dimensions", pin.view());
}

static void threads_within_a_budget() {
    const st::Checkpoint checkpoint = open_sample({ST_STORAGE_READ, 0, SAMPLE_WEIGHT_SIZE + SAMPLE_ODD_SIZE});
    const int rounds = test_is_instrumented() ? 20 : 1000;
    std::vector<std::thread> threads;
    for (const char *name : {"weight", "odd", "weight", "odd"})
        threads.emplace_back([own = checkpoint.share(), name, rounds] {
            const st::Tensor tensor = own[name];
            const std::size_t at = tensor.index() == SAMPLE_ODD ? SAMPLE_ODD_AT : SAMPLE_WEIGHT_AT;
            for (int i = 0; i < rounds; i++) {
                const st::Pin pin = tensor.pin();
                CHECK(fixture_is(pin.data(), at, pin.nbytes()));
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    CHECK(checkpoint.residency().in_use_bytes == 0 && checkpoint["odd"].residency().evictions == 0);
}

static const test_case cases[] = {
    CASE(gives_what_a_tensor_gives),
    CASE(holds_as_long_as_it_lives),
    CASE(outlives_its_checkpoint),
    CASE(moves),
    CASE(moved_from_holds_nothing),
    CASE(what_does_not_fit_is_an_exception),
    CASE(exceptions_leave_no_pin),
    CASE(views_are_those_of_the_library),
    CASE(views_make_no_copy_that_stays),
    CASE(views_of_many_dimensions_are_refused),
    CASE(threads_within_a_budget),
};

TEST_MAIN(cases)
