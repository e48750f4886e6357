#include "throws.hpp"

static const float numbers[] = {0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23};
static const fixture_tensor tensors[] = {{"m", "F32", "[3,4]", sizeof(numbers), numbers}, {"s", "F32", "[]", 4, numbers + 6}};
static const fixture matrix = {tensors, LEN(tensors), nullptr, 0};

/* Shape and strides lie in the view; the elements do not. */
COMPILES(has_shape, std::declval<X>().shape());
COMPILES(has_strides, std::declval<X>().strides());
COMPILES(has_c_view, std::declval<X>().c_view());
COMPILES(has_data, std::declval<X>().template data<float>());
static_assert(has_shape<const st::View &>::value && !has_shape<st::View>::value, "");
static_assert(has_strides<const st::View &>::value && !has_strides<st::View>::value, "");
static_assert(has_c_view<const st::View &>::value && !has_c_view<st::View>::value, "");
static_assert(has_data<const st::View &>::value && has_data<st::View>::value, "");

static void of_the_whole() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View view = checkpoint["m"].view();
    CHECK(view.data() == checkpoint["m"].data() && view.dtype() == ST_DTYPE_F32 && view.rank() == 2 && view.nbytes() == 48);
    CHECK(view.shape()[0] == 3 && view.shape()[1] == 4 && view.strides()[0] == 4 && view.strides()[1] == 1);
    CHECK(view.contiguous() && view.data<float>().size() == 12 && view.data<float>()[11] == 23);
    CHECK(&view.c_view() == &view.c_view() && view.c_view().data == view.data());
}

static void of_rows_is_contiguous() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View rows = checkpoint["m"].view({{1, 3}});
    CHECK(rows.contiguous() && rows.data<float>().size() == 8 && rows.data<float>()[0] == 10);
    CHECK(rows.at<float>({0, 0}) == 10 && rows.at<float>({1, 3}) == 23);
}

static void of_columns_is_strided() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View columns = checkpoint["m"].view({st::whole, {1, 3}});
    CHECK(!columns.contiguous() && columns.shape()[1] == 2 && columns.nbytes() == 24);
    CHECK(columns.at<float>({0, 0}) == 1 && columns.at<float>({2, 1}) == 22);
    THROWS(ST_ERR_NOT_CONTIGUOUS, "\"m\"", columns.data<float>());
    THROWS(ST_ERR_NOT_CONTIGUOUS, "\"m\"", columns.bits<float>());
    THROWS(ST_ERR_NOT_CONTIGUOUS, "\"m\"", columns.bytes());
}

static void as_bytes_and_bits() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View rows = checkpoint["m"].view({{1, 3}});
    CHECK(rows.bytes().size() == 32 && rows.bytes().data() == rows.data());
    CHECK(rows.bits<std::uint32_t>().size() == 8 && rows.bits<std::uint32_t>()[0] == 0x41200000);
    THROWS(ST_ERR_UNSUPPORTED, "32 bits", rows.bits<std::uint16_t>());
}

static void at_outside_is_refused() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View view = checkpoint["m"].view({{0, 2}, {0, 2}});
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({2, 0}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({0, 2}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({0}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({0, 0, 0}));
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({UINT64_MAX, UINT64_MAX}));
    THROWS(ST_ERR_UNSUPPORTED, "F32", view.at<double>({0, 0}));
}

static void of_a_scalar() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View view = checkpoint["s"].view();
    CHECK(view.rank() == 0 && view.at<float>({}) == 12 && view.data<float>().size() == 1);
}

static void of_nothing() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    const st::View view = checkpoint["m"].view({{3, 3}});
    CHECK(view.data<float>().empty() && view.contiguous());
    THROWS(ST_ERR_OUT_OF_RANGE, "\"m\"", view.at<float>({0, 0}));
}

static void outside_is_refused() {
    const st::Checkpoint checkpoint = open_fixture(matrix);
    THROWS(ST_ERR_OUT_OF_RANGE, "[0, 4)", checkpoint["m"].view({{0, 4}}));
    THROWS(ST_ERR_OUT_OF_RANGE, "3 ranges", checkpoint["m"].view({st::whole, st::whole, st::whole}));
}

static const test_case cases[] = {
    CASE(of_the_whole),
    CASE(of_rows_is_contiguous),
    CASE(of_columns_is_strided),
    CASE(as_bytes_and_bits),
    CASE(at_outside_is_refused),
    CASE(of_a_scalar),
    CASE(of_nothing),
    CASE(outside_is_refused),
};

TEST_MAIN(cases)
