#include "throws.hpp"

#include <array>
#include <cerrno>
#include <complex>
#include <cstdint>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

struct bf16 {
    std::uint16_t bits;
};
template <> struct safetensors_lazy::Element<bf16> : safetensors_lazy::ElementOf<ST_DTYPE_BF16> {};

static const float numbers[] = {1, 2, 3, 4, 5, 6};

static_assert(!std::is_copy_constructible_v<st::Writer> && !std::is_copy_assignable_v<st::Writer>);
static_assert(std::is_nothrow_move_constructible_v<st::Writer> && std::is_nothrow_move_assignable_v<st::Writer>);
static_assert(!std::is_convertible_v<std::string, st::Writer>, "beginning a file is never implicit");
static_assert(st::Element<std::uint8_t>::dtype == ST_DTYPE_U8 && st::Element<bf16>::dtype == ST_DTYPE_BF16);

/* What add takes has to stay: a temporary that owns its elements does not. */
COMPILES(can_be_added, std::declval<st::Writer &>().add("name", {6}, std::declval<X>()));
COMPILES(can_be_written, std::declval<st::Writer &>().write("name", std::declval<X>()));
static_assert(can_be_added<std::vector<float> &>::value && can_be_added<const std::vector<float> &>::value);
static_assert(!can_be_added<std::vector<float>>::value && !can_be_added<const std::vector<float>>::value);
static_assert(can_be_added<std::array<float, 6> &>::value && !can_be_added<std::array<float, 6>>::value);
static_assert(can_be_added<const float (&)[6]>::value && !can_be_added<float[6]>::value);
static_assert(can_be_added<st::Span<float>>::value && can_be_added<st::Span<const float>>::value);
static_assert(can_be_added<const st::Span<const float>>::value && can_be_added<st::Span<const float> &>::value);
static_assert(!can_be_added<float>::value && !can_be_added<float *>::value && !can_be_added<std::initializer_list<float>>::value);
static_assert(can_be_written<std::vector<float>>::value && can_be_written<st::Span<const std::byte>>::value);
#if __cplusplus >= 202002L
static_assert(can_be_added<std::span<const float>>::value);
#endif

static bool exists(const char *path) {
    struct stat about;
    return lstat(path, &about) == 0;
}

template <class T> static bool is(const st::Tensor &tensor, const std::vector<T> &expected) {
    const st::Span<const T> elements = tensor.template data<T>();
    return std::vector<T>(elements.begin(), elements.end()) == expected;
}

static void writes_what_it_was_given() {
    const char *path = fixture_path("written.safetensors");
    const std::vector<float> vector = {1, 2, 3, 4, 5, 6};
    std::array<std::int64_t, 2> array = {-1, 1};
    const std::uint8_t bytes[] = {7, 8, 9};
    const bf16 halves[] = {{0x3f80}, {0x4000}};
    const std::complex<float> unit(0, 1);
    const std::vector<std::uint64_t> shape = {3, 2};
    const std::string name = "a vector";
    st::Writer writer(path);
    writer.metadata("format", "pt");
    writer.metadata(std::string("empty"), "");
    writer.add(name, shape, vector);
    writer.add("array", {2}, array);
    writer.add("bytes", {3}, bytes);
    writer.add("halves", {1, 2, 1}, halves);
    writer.add("scalar", {}, st::Span<const std::complex<float>>(&unit, 1));
    writer.add("flags", ST_DTYPE_BOOL, {1, 2}, "\1", 2);
    writer.add("none", ST_DTYPE_F64, {0, 3}, nullptr, 0);
    writer.declare("pieces", ST_DTYPE_I16, {2, 2});
    writer.write("pieces", std::vector<std::int16_t>{1, 2, 3});
    writer.write("pieces", "\4", 2);
    CHECK(!exists(path));
    writer.finish();
    CHECK(!writer.get());

    const st::Checkpoint checkpoint(path);
    CHECK(checkpoint.size() == 8 && checkpoint.metadata().size() == 2 && checkpoint.metadata("format") == "pt");
    CHECK(checkpoint["a vector"].shape()[0] == 3 && is<float>(checkpoint["a vector"], vector));
    CHECK(is<std::int64_t>(checkpoint["array"], {-1, 1}) && is<std::uint8_t>(checkpoint["bytes"], {7, 8, 9}));
    CHECK(checkpoint["bytes"].dtype() == ST_DTYPE_U8 && checkpoint["flags"].dtype() == ST_DTYPE_BOOL);
    CHECK(checkpoint["halves"].rank() == 3 && checkpoint["halves"].data<bf16>()[1].bits == 0x4000);
    CHECK(checkpoint["scalar"].rank() == 0 && checkpoint["scalar"].data<std::complex<float>>()[0] == unit);
    CHECK(is<std::uint8_t>(checkpoint["flags"], {1, 0}) && checkpoint["none"].nbytes() == 0);
    CHECK(is<std::int16_t>(checkpoint["pieces"], {1, 2, 3, 4}));
}

static void options_are_passed_on() {
    st::WriterOptions options;
    options.flags = ST_WRITE_INSERTION_ORDER | ST_WRITE_NO_SYNC | ST_WRITE_CRC;
    options.alignment = 4096;
    options.max_shard_bytes = 24;
    st::Writer writer(fixture_path("options.safetensors"), options);
    writer.add("z", {6}, numbers);
    writer.add("a", {6}, numbers);
    writer.finish();
    CHECK(!exists(fixture_path("options.safetensors")));
    const st::Checkpoint checkpoint(fixture_path("options.safetensors.index.json"));
    CHECK(checkpoint.shards() == 2 && checkpoint.at(0).name() == "z" && checkpoint.at(1).file_offset() == 4096);
    CHECK(checkpoint.metadata("crc_num") && checkpoint.verify());
    options.flags = 1u << 20;
    THROWS(ST_ERR_INVALID_ARGUMENT, "", st::Writer("x", options));
    options = {};
    options.alignment = 12;
    THROWS(ST_ERR_INVALID_ARGUMENT, "12", st::Writer("x", options));
}

static void refuses_with_the_status_of_c() {
    THROWS(ST_ERR_IO, "/nonexistent", st::Writer("/nonexistent/file"));
    THROWS(ST_ERR_NOT_A_FILE, "/dev/full", st::Writer("/dev/full"));
    THROWS(ST_ERR_INVALID_ARGUMENT, "NUL", st::Writer(std::string("a\0b", 3)));
    const std::string_view nul("a\0b", 3);
    st::Writer writer(fixture_path("refused.safetensors"));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\\x00b\"", (writer.metadata(nul, "b"), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\\x00b\"", (writer.metadata("a", nul), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\\x00b\"", (writer.add(nul, {6}, numbers), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\\x00b\"", (writer.declare(nul, ST_DTYPE_F32, {6}), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\\x00b\"", (writer.write(nul, numbers), 0));
    THROWS(ST_ERR_TENSOR_SIZE, "\"a\"", (writer.add("a", {7}, numbers), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "99", (writer.declare("a", 99, {6}), 0));
    THROWS(ST_ERR_RESERVED_NAME, "__metadata__", (writer.declare("__metadata__", ST_DTYPE_F32, {6}), 0));
    writer.add("a", {6}, numbers);
    THROWS(ST_ERR_DUPLICATE_NAME, "\"a\"", (writer.add("a", {6}, numbers), 0));
    THROWS(ST_ERR_NOT_FOUND, "\"b\"", (writer.write("b", numbers), 0));
    writer.metadata("key", "value");
    THROWS(ST_ERR_DUPLICATE_METADATA, "\"key\"", (writer.metadata("key", "value"), 0));
}

static void finish_can_be_called_again() {
    const char *path = fixture_path("again.safetensors");
    st::Writer writer(path);
    writer.declare("a", ST_DTYPE_F32, {6});
    writer.write("a", numbers, 20);
    THROWS(ST_ERR_INCOMPLETE, "\"a\"", (writer.finish(), 0));
    CHECK(writer.get() && !exists(path));
    THROWS(ST_ERR_SEALED, "", (writer.add("b", {6}, numbers), 0));
    THROWS(ST_ERR_TENSOR_SIZE, "\"a\"", (writer.write("a", numbers), 0));
    writer.write("a", numbers + 5, 4);
    writer.finish();
    const st::Checkpoint checkpoint(path);
    CHECK(is<float>(checkpoint["a"], {1, 2, 3, 4, 5, 6}));
}

/* The entries of the folder that the fixtures are in, hidden ones too. */
static std::size_t entries() {
    const std::string path = fixture_path("x");
    return test_entries(path.substr(0, path.rfind('/')).c_str());
}

static void goes_without_a_trace() {
    const char *path = fixture_write("kept.safetensors", &fixture_sample);
    const std::size_t before = entries();
    {
        st::Writer writer(path);
        writer.declare("a", ST_DTYPE_F32, {6});
        writer.write("a", numbers);
        CHECK(entries() > before);
    }
    CHECK(entries() == before && st::Checkpoint(path).size() == SAMPLE_LEN);
    st::Writer writer(path);
    writer.add("a", {6}, numbers);
    writer.abort();
    CHECK(entries() == before && !writer.get());
    writer.abort();
    THROWS(ST_ERR_INVALID_ARGUMENT, "NULL", (writer.finish(), 0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "NULL", (writer.add("a", {6}, numbers), 0));
    CHECK(st::Checkpoint(path).size() == SAMPLE_LEN);
}

static void moves() {
    const char *path = fixture_path("moved.safetensors");
    const std::size_t before = entries();
    std::vector<st::Writer> several;
    for (int i = 0; i < 5; i++)
        several.emplace_back(path);
    several[0].add("a", {6}, numbers);
    st_writer *handle = several[0].get();
    st::Writer writer = std::move(several[0]);
    CHECK(writer.get() == handle && !several[0].get());
    THROWS(ST_ERR_INVALID_ARGUMENT, "NULL", (several[0].finish(), 0));
    several[1] = std::move(writer);
    st::Writer &itself = several[1];
    several[1] = std::move(itself);
    CHECK(several[1].get() == handle);
    several[1].finish();
    several.clear();
    CHECK(entries() == before + 1 && st::Checkpoint(path).size() == 1);
}

/* Whether this process has a file open. */
static std::size_t descriptors() { return test_entries("/proc/self/fd"); }

static void tensors_keep_their_checkpoint() {
    const std::size_t before = descriptors();
    for (std::int32_t storage : {ST_STORAGE_MMAP, ST_STORAGE_READ}) {
        const char *path = fixture_path("copy.safetensors");
        st::Writer writer(path);
        {
            const st::Checkpoint one = open_sample({storage, 0}), two = open_sample({storage, 0});
            for (st::Tensor tensor : one)
                writer.add(tensor);
            writer.add("another weight", two["weight"]);
            writer.add(std::string(two["weight"].name()) + " of two", two["weight"]);
            THROWS(ST_ERR_DUPLICATE_NAME, "\"weight\"", (writer.add(two["weight"]), 0));
        }
        st::Writer moved = std::move(writer);
        CHECK(descriptors() >= before + 2);
        moved.finish();
        CHECK(descriptors() == before);
        const st::Checkpoint copy(path);
        CHECK(copy.size() == SAMPLE_LEN + 2);
        CHECK(fixture_is(copy["weight"].data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        CHECK(fixture_is(copy["weight of two"].data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        CHECK(copy["another weight"].shape()[1] == 5 && copy["scalar"].rank() == 0 && copy["empty"].nbytes() == 0);
    }
    {
        st::Writer writer(fixture_path("given up.safetensors"));
        const st::Checkpoint checkpoint = open_sample();
        writer.add(checkpoint.at(0));
    }
    CHECK(descriptors() == before);
}

static void replaces_what_it_reads() {
    const char *path = fixture_write("itself.safetensors", &fixture_sample);
    const st::Checkpoint old(path);
    st::WriterOptions options;
    options.flags = ST_WRITE_BLAKE3;
    st::Writer writer(path, options);
    for (st::Tensor tensor : old)
        writer.add(tensor);
    writer.finish();
    CHECK(st::Checkpoint(path).verify());
    CHECK(fixture_is(old["odd"].data(), SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
}

static void several_threads() {
    const char *path = fixture_path("threads.safetensors");
    st::Writer writer(path);
    const auto each = [](auto work) {
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; i++)
            threads.emplace_back(work, std::to_string(i));
        for (std::thread &thread : threads)
            thread.join();
    };
    each([&](const std::string &name) { writer.declare(name, ST_DTYPE_F32, {6}); });
    each([&](const std::string &name) {
        for (float number : numbers)
            writer.write(name, st::Span<const float>(&number, 1));
    });
    writer.finish();
    const st::Checkpoint checkpoint(path);
    CHECK(checkpoint.size() == 4);
    for (st::Tensor tensor : checkpoint)
        CHECK(is<float>(tensor, {1, 2, 3, 4, 5, 6}));
}

static const test_case cases[] = {
    CASE(writes_what_it_was_given),
    CASE(options_are_passed_on),
    CASE(refuses_with_the_status_of_c),
    CASE(finish_can_be_called_again),
    CASE(goes_without_a_trace),
    CASE(moves),
    CASE(tensors_keep_their_checkpoint),
    CASE(replaces_what_it_reads),
    CASE(several_threads),
};

TEST_MAIN(cases)
