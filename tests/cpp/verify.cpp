#include "throws.hpp"

#include <cstdio>
#include <string>
#include <vector>

static const float numbers[] = {1, 2, 3, 4, 5, 6};

/* The message lies in the result; its numbers a temporary can give away. */
COMPILES(has_message, std::declval<X>().message());
COMPILES(has_report, std::declval<X>().report());
static_assert(has_message<const st::Verified &>::value && !has_message<st::Verified>::value, "");
static_assert(has_report<const st::Verified &>::value && has_report<st::Verified>::value, "");
static_assert(!std::is_convertible_v<st::Verified, bool> && !std::is_default_constructible_v<st::Verified>);

/* Two tensors, "first" and "second", with checksums. */
static const char *write(std::uint32_t flags) {
    st::WriterOptions options;
    options.flags = flags | ST_WRITE_NO_SYNC | ST_WRITE_INSERTION_ORDER;
    const char *path = fixture_path("verify.safetensors");
    st::Writer writer(path, options);
    writer.add("first", {2, 3}, numbers);
    writer.add("second", {6}, numbers);
    writer.finish();
    return path;
}

/* Flips a bit of the last byte, which belongs to "second". */
static void damage(const char *path) {
    std::FILE *file = std::fopen(path, "r+b");
    CHECK(file && std::fseek(file, -1, SEEK_END) == 0);
    const int byte = std::fgetc(file);
    CHECK(std::fseek(file, -1, SEEK_END) == 0 && std::fputc(byte ^ 1, file) != EOF && std::fclose(file) == 0);
}

static void says_what_is_good() {
    const st::Checkpoint checkpoint(write(ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3));
    const st::Verified verified = checkpoint.verify();
    CHECK(verified && verified.message().empty());
    verified.check();
    const st_verify_report &report = verified.report();
    CHECK(report.tensors == 2 && report.bad_tensors == 0 && report.first_bad_tensor == ST_ALL && report.first_bad_shard == ST_ALL);
    CHECK(report.checks == (ST_CHECK_CRC | ST_CHECK_SHA256 | ST_CHECK_BLAKE3) && report.bad_checks == 0 && report.bytes >= 48);
}

static void says_what_is_damaged() {
    const char *path = write(ST_WRITE_BLAKE3);
    damage(path);
    const st::Checkpoint checkpoint(path);
    const st::Verified verified = checkpoint.verify();
    CHECK(!verified && verified.message().find("\"second\"") != std::string_view::npos);
    CHECK(verified.report().bad_tensors == 1 && checkpoint.at(verified.report().first_bad_tensor).name() == "second");
    CHECK(verified.report().bad_shards == 1 && verified.report().bad_checks == ST_CHECK_BLAKE3);
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"second\"", (verified.check(), 0));
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"second\"", (checkpoint.verify().check(), 0));
    CHECK(checkpoint.verify().report().bad_tensors == 1);
}

static void asks_for_kinds() {
    const st::Checkpoint checkpoint(write(ST_WRITE_CRC | ST_WRITE_BLAKE3));
    st::VerifyOptions options;
    options.workers = 1;
    options.flags = ST_VERIFY_AROUND_CACHE;
    options.checks = ST_CHECK_CRC;
    CHECK(checkpoint.verify(options).report().checks == ST_CHECK_CRC);
    options.checks = ST_CHECK_SHA256;
    THROWS(ST_ERR_CHECKSUM_MISSING, "", checkpoint.verify(options));
    options.checks = 1u << 20;
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.verify(options));
    options = {};
    options.flags = 1u << 20;
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.verify(options));
    THROWS(ST_ERR_CHECKSUM_MISSING, "", open_sample().verify());
}

static void takes_digests_of_files() {
    const st::Checkpoint checkpoint(write(0));
    const std::string wrong(64, '0');
    st::VerifyOptions options;
    options.sha256 = {wrong.c_str()};
    const st::Verified verified = checkpoint.verify(options);
    CHECK(!verified && verified.report().bad_checks == ST_CHECK_FILE_SHA256 && verified.report().bad_tensors == 0);
    CHECK(verified.message().find("verify.safetensors") != std::string_view::npos);
    options.sha256 = {nullptr};
    THROWS(ST_ERR_CHECKSUM_MISSING, "", checkpoint.verify(options));
    options.sha256 = {"no digest"};
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.verify(options));
    options.sha256 = {wrong.c_str(), wrong.c_str()};
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.verify(options));
}

static st::OpenOptions verifying(std::int32_t how) {
    st::OpenOptions options;
    options.verify = how;
    return options;
}

static void opens_with_verification() {
    const char *path = write(ST_WRITE_BLAKE3);
    for (std::int32_t how : {ST_VERIFY_NONE, ST_VERIFY_STRUCTURE, ST_VERIFY_FIRST_USE, ST_VERIFY_FULL})
        CHECK(st::Checkpoint(path, verifying(how)).size() == 2);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", st::Checkpoint(path, verifying(99)));
    damage(path);
    CHECK(st::Checkpoint(path, verifying(ST_VERIFY_STRUCTURE)).size() == 2);
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"second\"", st::Checkpoint(path, verifying(ST_VERIFY_FULL)));
    const st::Checkpoint checkpoint(path, verifying(ST_VERIFY_FIRST_USE));
    CHECK(checkpoint["first"].data<float>()[5] == 6);
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"second\"", checkpoint["second"].data<float>());
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"second\"", checkpoint["second"].pin());
    THROWS(ST_ERR_CHECKSUM_MISSING, "", open_sample(verifying(ST_VERIFY_FIRST_USE)));
}

static void moved_from_is_refused() {
    st::Checkpoint first = open_sample();
    const st::Checkpoint second = std::move(first);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.verify());
}

static const test_case cases[] = {
    CASE(says_what_is_good),
    CASE(says_what_is_damaged),
    CASE(asks_for_kinds),
    CASE(takes_digests_of_files),
    CASE(opens_with_verification),
    CASE(moved_from_is_refused),
};

TEST_MAIN(cases)
