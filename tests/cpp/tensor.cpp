#include "throws.hpp"

#include <complex>
#include <cstring>
#include <vector>

#include "../c/dlpack_abi.h"

struct bf16 {
    std::uint16_t bits;
};
template <> struct safetensors_lazy::Element<bf16> : safetensors_lazy::ElementOf<ST_DTYPE_BF16> {};

static const float floats[] = {1, -2.5f, 3, 4, 5, 6};
static const double doubles[] = {0.1, 1e300};
static const std::int16_t shorts[] = {-1, 300};
static const std::uint16_t halves[] = {0x3f80, 0x4000};
static const unsigned char flags[] = {1, 0, 1};
static const fixture_tensor typed_tensors[] = {
    {"f32", "F32", "[2,3]", sizeof(floats), floats}, {"f64", "F64", "[2]", sizeof(doubles), doubles},
    {"i16", "I16", "[2]", sizeof(shorts), shorts},   {"c64", "C64", "[1]", 8, floats},
    {"bf16", "BF16", "[2]", sizeof(halves), halves}, {"bool", "BOOL", "[3]", sizeof(flags), flags},
    {"late", "F32", "[2]", 8, floats},               {"line\\nbreak", "U8", "[0]", 0, nullptr},
    {"f4", "F4", "[4]", 2, nullptr},
};
static const fixture typed = {typed_tensors, LEN(typed_tensors), nullptr, 0};

static void describes_itself() {
    const st::Checkpoint checkpoint = open_sample();
    const st::Tensor weight = checkpoint["weight"];
    CHECK(weight.name() == "weight" && weight.index() == SAMPLE_WEIGHT && weight.dtype() == ST_DTYPE_F32);
    CHECK(std::string(weight.dtype_name()) == "F32" && weight.rank() == 2 && weight.nbytes() == SAMPLE_WEIGHT_SIZE);
    CHECK(weight.shape().size() == 2 && weight.shape()[0] == 4 && weight.shape()[1] == 5);
    CHECK(weight.shard() == 0 && weight.file_offset() % weight.alignment() == 0);
    CHECK(checkpoint["scalar"].rank() == 0 && checkpoint["scalar"].shape().empty());
}

static void data_is_typed() {
    const st::Checkpoint checkpoint = open_fixture(typed);
    const st::Span<const float> f32 = checkpoint["f32"].data<float>();
    CHECK(f32.size() == 6 && f32[1] == -2.5f && f32.data() == checkpoint["f32"].data());
    CHECK(checkpoint["f64"].data<double>()[1] == 1e300 && checkpoint["i16"].data<std::int16_t>()[0] == -1);
    CHECK(checkpoint["bf16"].data<bf16>()[1].bits == 0x4000);
    CHECK(checkpoint["bool"].data<std::uint8_t>().size() == 3 && checkpoint["bool"].data<std::uint8_t>()[2] == 1);
    CHECK(checkpoint["c64"].data<std::complex<float>>()[0] == std::complex<float>(1, -2.5f));
    CHECK(checkpoint["late"].data<float>()[0] == 1);
}

static void data_of_the_wrong_type_is_refused() {
    const st::Checkpoint checkpoint = open_fixture(typed);
    THROWS(ST_ERR_UNSUPPORTED, "\"f32\"", checkpoint["f32"].data<std::int32_t>());
    THROWS(ST_ERR_UNSUPPORTED, "F64", checkpoint["f64"].data<float>());
    THROWS(ST_ERR_UNSUPPORTED, "BF16", checkpoint["bf16"].data<std::uint16_t>());
    THROWS(ST_ERR_UNSUPPORTED, "F4", checkpoint["f4"].data<std::uint8_t>());
    THROWS(ST_ERR_UNSUPPORTED, "", checkpoint["line\nbreak"].data<float>());
}

static void bits_take_any_type_of_the_size() {
    const st::Checkpoint checkpoint = open_fixture(typed);
    CHECK(checkpoint["bf16"].bits<std::uint16_t>()[0] == 0x3f80);
    CHECK(checkpoint["f32"].bits<std::uint32_t>()[0] == 0x3f800000);
    THROWS(ST_ERR_UNSUPPORTED, "16 bits", checkpoint["bf16"].bits<std::uint32_t>());
    THROWS(ST_ERR_UNSUPPORTED, "4 bits", checkpoint["f4"].bits<std::uint8_t>());
}

static void bits_respect_the_alignment_of_the_type() {
    struct alignas(64) strict {
        unsigned char bytes[64];
    };
    struct alignas(8) eight {
        float parts[2];
    };
    const st::Checkpoint checkpoint = open_fixture(typed);
    // C64 needs an alignment of 4, and lies so.
    CHECK(checkpoint["c64"].alignment() == 4);
    THROWS(ST_ERR_MISALIGNED, "\"c64\"", checkpoint["c64"].bits<eight>());
    THROWS(ST_ERR_UNSUPPORTED, "", checkpoint["f32"].bits<strict>());
}

static void bytes_are_all_bytes() {
    const st::Checkpoint checkpoint = open_sample();
    CHECK(checkpoint["weight"].bytes().size() == SAMPLE_WEIGHT_SIZE);
    CHECK(fixture_is(checkpoint["weight"].bytes().data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    CHECK(checkpoint["empty"].bytes().empty() && checkpoint["empty"].data<double>().empty());
}

static void mutable_data_needs_copy_on_write() {
    const st::Checkpoint read_only = open_sample();
    THROWS(ST_ERR_UNSUPPORTED, "ST_OPEN_COPY_ON_WRITE", read_only["weight"].mutable_data<float>());
    const st::Checkpoint writable = open_sample({ST_STORAGE_AUTO, ST_OPEN_COPY_ON_WRITE});
    THROWS(ST_ERR_UNSUPPORTED, "F32", writable["weight"].mutable_data<double>());
    CHECK(writable["bias"].mutable_bits<std::uint16_t>().size() == 5);
    THROWS(ST_ERR_UNSUPPORTED, "ST_OPEN_COPY_ON_WRITE", read_only["bias"].mutable_bits<std::uint16_t>());
    for (float &element : writable["weight"].mutable_data<float>())
        element = 2;
    CHECK(writable["weight"].data<float>()[19] == 2);
    CHECK(fixture_is(read_only["weight"].data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
}

static void read_copies() {
    const st::Checkpoint checkpoint = open_sample();
    std::vector<unsigned char> bytes(SAMPLE_WEIGHT_SIZE);
    checkpoint["weight"].read(bytes.data(), bytes.size());
    CHECK(fixture_is(bytes.data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    checkpoint["weight"].read(bytes.data(), 8, {{1, 2}, {0, 2}});
    CHECK(fixture_is(bytes.data(), SAMPLE_WEIGHT_AT + 20, 8));
    checkpoint["weight"].read(bytes.data(), 16, {st::whole, {4, ST_END}});
    CHECK(fixture_is(bytes.data(), SAMPLE_WEIGHT_AT + 16, 4) && fixture_is(bytes.data() + 12, SAMPLE_WEIGHT_AT + 76, 4));
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "80", checkpoint["weight"].read(bytes.data(), 79));
    THROWS(ST_ERR_OUT_OF_RANGE, "dimension 0", checkpoint["weight"].read(bytes.data(), 80, {{0, 5}}));
}

static void residency_and_evict() {
    const st::Checkpoint checkpoint = open_sample({ST_STORAGE_READ, 0, 1000});
    const st::Tensor weight = checkpoint["weight"], odd = checkpoint["odd"];
    CHECK(weight.residency().charged_bytes == 0 && weight.residency().budget == 1000);
    weight.pin();
    CHECK(weight.residency().charged_bytes == SAMPLE_WEIGHT_SIZE && weight.residency().misses == 1);
    weight.evict();
    CHECK(weight.residency().charged_bytes == 0 && weight.residency().evictions == 1);
    weight.evict(ST_EVICT_PAGE_CACHE);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", weight.evict(1u << 20));
    /* What has been pointed to in a copy stays. */
    CHECK(fixture_is(odd.data(), SAMPLE_ODD_AT, SAMPLE_ODD_SIZE) && odd.residency().in_use_bytes == SAMPLE_ODD_SIZE);
    THROWS(ST_ERR_IN_USE, "\"odd\"", odd.evict());
}

static void dlpack_is_owned_by_the_caller() {
    DLManagedTensorVersioned *managed;
    DLManagedTensor *old;
    {
        const st::Checkpoint checkpoint = open_sample();
        managed = checkpoint["weight"].dlpack({{1, 3}});
        old = checkpoint["odd"].dlpack_unversioned();
        THROWS(ST_ERR_OUT_OF_RANGE, "", checkpoint["weight"].dlpack({{1, 9}}));
        THROWS(ST_ERR_OUT_OF_RANGE, "", checkpoint["scalar"].dlpack_unversioned({{0, 1}}));
    }
    CHECK(managed->dl_tensor.shape[0] == 2 && fixture_is(managed->dl_tensor.data, SAMPLE_WEIGHT_AT + 20, 40));
    CHECK(fixture_is(old->dl_tensor.data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    managed->deleter(managed);
    old->deleter(old);
}

static const test_case cases[] = {
    CASE(describes_itself),
    CASE(data_is_typed),
    CASE(data_of_the_wrong_type_is_refused),
    CASE(bits_take_any_type_of_the_size),
    CASE(bits_respect_the_alignment_of_the_type),
    CASE(bytes_are_all_bytes),
    CASE(mutable_data_needs_copy_on_write),
    CASE(read_copies),
    CASE(residency_and_evict),
    CASE(dlpack_is_owned_by_the_caller),
};

TEST_MAIN(cases)
