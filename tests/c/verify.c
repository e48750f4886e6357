/* Checking: st_verify, and st_open_options.verify. */
#define _GNU_SOURCE

#include "dlpack_abi.h"
#include "fixture.h"
#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUMS = ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3, ALL_CHECKS = ST_CHECK_CRC | ST_CHECK_SHA256 | ST_CHECK_BLAKE3 };

/* --- files ---------------------------------------------------------------------------------------------------------------- */

/* Two rows of it are more than one block of what the library hashes at once. */
enum { LARGE_ROWS = 4, LARGE_ROW = 700001, SMALL_SIZE = 48 };

/* In the order of the file: tensors of every kind, the last of which is not aligned. Tensor i has the bytes from 10 * i on. */
typedef struct part {
    const char *name;
    st_dtype dtype;
    uint32_t rank;
    uint64_t shape[2];
    size_t nbytes;
} part;
enum { SCALAR, EMPTY, LARGE, ODD, SMALL, PARTS };
static const part parts[PARTS] = {
    {"scalar", ST_DTYPE_I64, 0, {0}, 8},
    {"empty", ST_DTYPE_F64, 2, {0, 3}, 0},
    {"large", ST_DTYPE_U8, 2, {LARGE_ROWS, LARGE_ROW}, LARGE_ROWS *LARGE_ROW},
    {"odd", ST_DTYPE_U8, 1, {3}, 3},
    {"small", ST_DTYPE_F32, 2, {4, 3}, SMALL_SIZE},
};

static const unsigned char *bytes_of(size_t part) {
    return fixture_run(10 * part, parts[part].nbytes);
}

static size_t index_of(const st_checkpoint *checkpoint, size_t part) {
    size_t index;
    CHECK(st_find(checkpoint, parts[part].name, &index) == ST_OK);
    return index;
}

static void add_parts(st_writer *writer, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        OK(st_writer_add(writer, parts[i].name, parts[i].dtype, parts[i].shape, parts[i].rank, bytes_of(i), parts[i].nbytes,
                         &err));
}

/* Long ago: a change is a change of the time of modification, which may be no finer than some milliseconds. */
static void make_old(const char *path) {
    const struct timespec times[2] = {{1000000000, 0}, {1000000000, 0}};
    CHECK(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static const char *write_parts(const char *name, uint32_t flags) {
    const char *path = fixture_path(name);
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.flags = flags | ST_WRITE_NO_SYNC | ST_WRITE_INSERTION_ORDER;
    st_writer *writer;
    OK(st_writer_open(path, &options, &writer, &err));
    add_parts(writer, 0, PARTS);
    OK(st_writer_finish(writer, &err));
    make_old(path);
    return path;
}

static uint64_t place_of(const char *path, size_t part) {
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_READ, 0);
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, index_of(checkpoint, part), &tensor, &err));
    st_close(checkpoint);
    return tensor.file_offset;
}

/* As write_parts, with a bit of a tensor flipped. */
static const char *write_damaged(const char *name, uint32_t flags, size_t part) {
    const char *path = write_parts(name, flags);
    fixture_flip(path, place_of(path, part) + parts[part].nbytes / 2);
    make_old(path);
    return path;
}

static st_status open_as(const char *path, int32_t storage, uint32_t flags, int32_t verify, st_checkpoint **out) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    options.flags = flags;
    options.verify = verify;
    if (storage != ST_STORAGE_MEMORY)
        return st_open(path, &options, out, &err);
    /* Where the file would be, so that it lives as long as the checkpoint. */
    static unsigned char *buffer;
    static size_t len;
    free(buffer);
    buffer = fixture_slurp(path, &len);
    return st_open_buffer(buffer, len, &options, out, &err);
}

/* --- st_verify ------------------------------------------------------------------------------------------------------------- */

static const char *data_path(const char *name) {
    static char paths[4][4096];
    static unsigned next;
    const char *data = test_setting("ST_TEST_DATA");
    if (!data)
        SKIP("ST_TEST_DATA is not set");
    char *path = paths[next++ % LEN(paths)];
    snprintf(path, sizeof(paths[0]), "%s/mindspore/%s", data, name);
    return path;
}

static const char *const with_crc[] = {
    "crc_int_scalar", "crc_mixed", "crc_names", "crc_scalar", "dense_crc", "dense_remove_redundancy_True_crc", "qint4x2_crc",
};

/* What expected.json says is the SHA-256 of a file. */
static const char *sha256_of(const char *name) {
    static char digests[4][65];
    static unsigned next;
    char key[256];
    size_t len;
    unsigned char *json = fixture_slurp(data_path("expected.json"), &len);
    json[len] = 0;
    snprintf(key, sizeof(key), "\"%s\":", name);
    const char *at = strstr((const char *)json, key);
    at = at ? strstr(at, "\"sha256\": \"") : NULL;
    CHECK(at);
    char *digest = digests[next++ % LEN(digests)];
    memcpy(digest, at + strlen("\"sha256\": \""), 64);
    free(json);
    return digest;
}

static void verify_crc_of_mindspore(void) {
    for (size_t i = 0; i < LEN(with_crc); i++) {
        char name[128];
        snprintf(name, sizeof(name), "%s.safetensors", with_crc[i]);
        st_checkpoint *checkpoint = fixture_open_path(data_path(name), ST_STORAGE_AUTO, 0);
        st_verify_options options = ST_VERIFY_OPTIONS_INIT;
        for (uint32_t checks = 0; checks <= ST_CHECK_CRC; checks++) {
            options.checks = checks;
            st_verify_report report;
            OK(st_verify(checkpoint, &options, &report, &err));
            st_info info;
            CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK && report.bytes == info.tensor_bytes);
            CHECK(report.tensors == st_len(checkpoint) && report.bad_tensors == 0 && report.bad_shards == 0);
            CHECK(report.first_bad_tensor == ST_ALL && report.first_bad_shard == ST_ALL);
            CHECK(report.checks == ST_CHECK_CRC && report.bad_checks == 0);
        }
        options.checks = ST_CHECK_BLAKE3;
        FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, NULL, &err));
        st_close(checkpoint);
        st_open_options full = ST_OPEN_OPTIONS_INIT;
        full.verify = ST_VERIFY_FULL;
        OK(st_open(data_path(name), &full, &checkpoint, &err));
        st_close(checkpoint);
    }
    st_checkpoint *none = fixture_open_path(data_path("mixed_bf16.safetensors"), ST_STORAGE_AUTO, 0);
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(none, NULL, NULL, &err));
    SAYS("mixed_bf16.safetensors");
    st_close(none);
}

/* MindSpore copies the sum of another file into these: see README.md there. */
static void verify_wrong_crc_of_mindspore(void) {
    st_checkpoint *checkpoint = fixture_open_path(data_path("distributed/unified/part0.safetensors"), ST_STORAGE_AUTO, 0);
    st_verify_report report;
    FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, &report, &err));
    SAYS("part0.safetensors");
    SAYS("1209533350");
    CHECK(report.bad_shards == 1 && report.first_bad_shard == 0 && report.bad_checks == ST_CHECK_CRC);
    CHECK(report.bad_tensors == 0 && report.first_bad_tensor == ST_ALL && report.tensors == st_len(checkpoint));
    st_close(checkpoint);
    /* With its last shard it has one that has no sum at all. */
    checkpoint = fixture_open_path(data_path("distributed/unified_3parts"), ST_STORAGE_AUTO, 0);
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, NULL, &report, &err));
    SAYS("hyper_param.safetensors");
    const char *digests[4] = {NULL, NULL, NULL, NULL};
    CHECK(st_shard_len(checkpoint) == 4);
    for (size_t i = 0; i < 4; i++) {
        char name[128];
        snprintf(name, sizeof(name), "distributed/unified_3parts%s", strrchr(st_shard_path(checkpoint, i), '/'));
        if (strstr(name, "hyper"))
            digests[i] = sha256_of(name);
    }
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.sha256 = digests;
    options.sha256_len = 4;
    FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, &report, &err));
    CHECK(report.bad_shards == 3 && report.bad_tensors == 0);
    CHECK(report.checks == (ST_CHECK_CRC | ST_CHECK_FILE_SHA256) && report.bad_checks == ST_CHECK_CRC);
    st_close(checkpoint);
}

static void verify_each_kind_alone_and_together(void) {
    uint64_t data_bytes = 0;
    for (size_t i = 0; i < PARTS; i++)
        data_bytes += parts[i].nbytes;
    for (uint32_t kinds = 0; kinds <= ALL_CHECKS; kinds++) {
        /* ST_WRITE_CRC and its like are ST_CHECK_CRC and its like, two bits further. */
        const char *path = write_parts("kinds.safetensors", kinds << 2);
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            st_checkpoint *checkpoint;
            OK(open_as(path, fixture_storages[s], 0, ST_VERIFY_NONE, &checkpoint));
            for (uint32_t checks = 0; checks <= ALL_CHECKS; checks++) {
                st_verify_options options = ST_VERIFY_OPTIONS_INIT;
                options.checks = checks;
                options.workers = checks % 3;
                options.flags = checks & 1 ? ST_VERIFY_AROUND_CACHE : 0;
                st_verify_report report;
                memset(&report, 0x55, sizeof(report));
                if ((checks & ~kinds) || kinds == 0) {
                    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, &report, &err));
                    CHECK(report.bytes == 0x5555555555555555);
                    continue;
                }
                OK(st_verify(checkpoint, &options, &report, &err));
                CHECK(report.checks == (checks ? checks : kinds) && report.bad_checks == 0);
                CHECK(report.bytes == data_bytes && report.tensors == PARTS);
                CHECK(report.bad_tensors == 0 && report.first_bad_tensor == ST_ALL);
                CHECK(report.bad_shards == 0 && report.first_bad_shard == ST_ALL);
            }
            st_close(checkpoint);
        }
    }
}

static void verify_finds_a_flipped_bit(void) {
    size_t turn = 0;
    for (size_t part = 0; part < PARTS; part++) {
        if (part == EMPTY)
            continue;
        const size_t only = turn++ % LEN(fixture_storages);
        const char *path = write_damaged("flipped.safetensors", SUMS, part);
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            /* Each storage has its turn. */
            if (test_is_instrumented() && s != only)
                continue;
            for (uint32_t checks = 0; checks <= ALL_CHECKS; checks += test_is_instrumented() ? ALL_CHECKS : 1) {
                st_checkpoint *checkpoint;
                OK(open_as(path, fixture_storages[s], 0, ST_VERIFY_NONE, &checkpoint));
                st_verify_options options = ST_VERIFY_OPTIONS_INIT;
                options.checks = checks;
                st_verify_report report;
                FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, &report, &err));
                const bool knows_which = checks == 0 || (checks & ST_CHECK_BLAKE3);
                if (knows_which)
                    SAYS(parts[part].name);
                if (fixture_storages[s] != ST_STORAGE_MEMORY)
                    SAYS("flipped.safetensors");
                CHECK(report.bad_tensors == knows_which);
                CHECK(report.first_bad_tensor == (knows_which ? index_of(checkpoint, part) : ST_ALL));
                CHECK(report.bad_shards == 1 && report.first_bad_shard == 0 && report.tensors == PARTS);
                CHECK(report.bad_checks == (checks ? checks : ALL_CHECKS) && report.checks == report.bad_checks);
                FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, NULL, &err));
                CHECK(st_verify(checkpoint, &options, &report, NULL) == ST_ERR_CHECKSUM_MISMATCH);
                CHECK(st_verify(checkpoint, &options, NULL, NULL) == ST_ERR_CHECKSUM_MISMATCH);
                st_close(checkpoint);
            }
        }
    }
}

/* Several are counted, and the first by its index is named. */
static void verify_counts_bad_tensors(void) {
    const char *path = write_parts("several.safetensors", ST_WRITE_BLAKE3);
    const size_t bad[] = {SMALL, LARGE, SCALAR};
    for (size_t i = 0; i < LEN(bad); i++) {
        fixture_flip(path, place_of(path, bad[i]));
        st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
        st_verify_report report;
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, &report, &err));
        SAYS(parts[bad[i]].name);
        CHECK(report.bad_tensors == i + 1 && report.first_bad_tensor == index_of(checkpoint, bad[i]));
        st_close(checkpoint);
    }
}

/* Gives where a text first is in a file. */
static uint64_t find_text(const char *path, const char *text) {
    size_t len;
    unsigned char *bytes = fixture_slurp(path, &len);
    const unsigned char *at = memmem(bytes, len, text, strlen(text));
    CHECK(at);
    const uint64_t offset = (uint64_t)(at - bytes);
    free(bytes);
    return offset;
}

/* The digest of the header covers what the tensors are called, which no other sum but that of the file does. */
static void verify_finds_a_changed_header(void) {
    const char *path = write_parts("renamed.safetensors", SUMS);
    fixture_flip(path, find_text(path, "large"));
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    size_t index;
    CHECK(st_find(checkpoint, "marge", &index) == ST_OK);
    st_verify_report report;
    FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, &report, &err));
    SAYS("header");
    /* MindSpore's sum has the names in it. */
    CHECK(report.bad_checks == (ST_CHECK_BLAKE3 | ST_CHECK_CRC) && report.bad_shards == 1 && report.first_bad_shard == 0);
    st_close(checkpoint);
    for (int32_t level = ST_VERIFY_STRUCTURE; level <= ST_VERIFY_FULL; level++) {
        checkpoint = (st_checkpoint *)&index;
        FAILS(ST_ERR_CHECKSUM_MISMATCH, open_as(path, ST_STORAGE_AUTO, 0, level, &checkpoint));
        SAYS("header");
        CHECK(!checkpoint);
    }
}

static void verify_what_is_no_checksum(void) {
#define DIGITS "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
    static const char *const malformed[] = {
        "{\"crc_num\":\"\"}",
        "{\"crc_num\":\"-1\"}",
        "{\"crc_num\":\"0x12\"}",
        "{\"crc_num\":\"4294967296\"}",
        "{\"crc_num\":\" 1\"}",
        "{\"modelspec.hash_sha256\":\"0x\"}",
        "{\"modelspec.hash_sha256\":\"" DIGITS "\"}",
        "{\"modelspec.hash_sha256\":\"" DIGITS "g\"}",
        "{\"modelspec.hash_sha256\":\"" DIGITS "ff\"}",
        "{\"sshs_model_hash\":\"None\"}",
        "{\"sshs_model_hash\":\"" DIGITS "\"}",
        "{\"safetensors_lazy.blake3\":\"\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "f\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "f " DIGITS "f " DIGITS "f\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "f  " DIGITS "f\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "F " DIGITS "f\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "f " DIGITS "f \"}",
    };
    const fixture_tensor tensor = {"t", "U8", "[5]", 5, NULL};
    for (size_t i = 0; i < LEN(malformed); i++) {
        const fixture file = {&tensor, 1, malformed[i], 0};
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            st_checkpoint *checkpoint = fixture_open(&file, fixture_storages[s], 0);
            const char *key;
            CHECK(st_metadata_at(checkpoint, 0, &key, NULL) == ST_OK);
            FAILS(ST_ERR_CHECKSUM_MALFORMED, st_verify(checkpoint, NULL, NULL, &err));
            SAYS(key);
            st_close(checkpoint);
        }
        const char *path = fixture_write("malformed.safetensors", &file);
        for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
            st_checkpoint *checkpoint;
            if (level != ST_VERIFY_NONE) {
                FAILS(ST_ERR_CHECKSUM_MALFORMED, open_as(path, ST_STORAGE_AUTO, 0, level, &checkpoint));
                continue;
            }
            OK(open_as(path, ST_STORAGE_AUTO, 0, level, &checkpoint));
            st_close(checkpoint);
        }
    }
    static const char *const mismatching[] = {
        "{\"crc_num\":\"7\"}",
        "{\"modelspec.hash_sha256\":\"" DIGITS "F\"}",
        "{\"modelspec.hash_sha256\":\"0x" DIGITS "f\"}",
        "{\"sshs_model_hash\":\"" DIGITS "f\"}",
        "{\"safetensors_lazy.blake3\":\"" DIGITS "f " DIGITS "f\"}",
    };
    for (size_t i = 0; i < LEN(mismatching); i++) {
        const fixture file = {&tensor, 1, mismatching[i], 0};
        st_checkpoint *checkpoint = fixture_open(&file, ST_STORAGE_AUTO, 0);
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, NULL, &err));
        st_close(checkpoint);
    }
    /* Nothing, as some programs write it, is no digest, and no malformed one. */
    const fixture file = {&tensor, 1, "{\"modelspec.hash_sha256\":\"\"}", 0};
    st_checkpoint *checkpoint = fixture_open(&file, ST_STORAGE_AUTO, 0);
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, NULL, NULL, &err));
    st_close(checkpoint);
}

/* The same digest under two keys: whichever there is is compared, and of two that differ one is wrong. */
static void sha256_under_either_key(void) {
#define OF_BYTES_0_TO_4 "08bb5e5d6eaac1049ede0893d30ed022b1a4d9b5b48db414871f51c9cb35283d"
    static const char *const right[] = {
        "{\"sshs_model_hash\":\"" OF_BYTES_0_TO_4 "\"}",
        "{\"sshs_model_hash\":\"0x" OF_BYTES_0_TO_4 "\"}",
        "{\"modelspec.hash_sha256\":\"0x" OF_BYTES_0_TO_4 "\",\"sshs_model_hash\":\"" OF_BYTES_0_TO_4 "\"}",
        "{\"modelspec.hash_sha256\":\"\",\"sshs_model_hash\":\"" OF_BYTES_0_TO_4 "\"}",
    };
    static const char *const wrong[][2] = {
        {"{\"sshs_model_hash\":\"" DIGITS "f\"}", "sshs_model_hash"},
        {"{\"modelspec.hash_sha256\":\"" OF_BYTES_0_TO_4 "\",\"sshs_model_hash\":\"" DIGITS "f\"}", "sshs_model_hash"},
        {"{\"sshs_model_hash\":\"" OF_BYTES_0_TO_4 "\",\"modelspec.hash_sha256\":\"" DIGITS "f\"}", "modelspec.hash_sha256"},
    };
    const fixture_tensor tensor = {"t", "U8", "[5]", 5, NULL};
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.checks = ST_CHECK_SHA256;
    for (size_t i = 0; i < LEN(right) + LEN(wrong); i++) {
        const bool is_right = i < LEN(right);
        const fixture file = {&tensor, 1, is_right ? right[i] : wrong[i - LEN(right)][0], 0};
        st_checkpoint *checkpoint = fixture_open(&file, ST_STORAGE_AUTO, 0);
        st_verify_report report;
        if (is_right) {
            OK(st_verify(checkpoint, &options, &report, &err));
            CHECK(report.checks == ST_CHECK_SHA256 && report.bad_checks == 0);
        } else {
            FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, NULL, &err));
            SAYS(wrong[i - LEN(right)][1]);
        }
        st_close(checkpoint);
    }
    const fixture none = {&tensor, 1, NULL, 0};
    st_checkpoint *checkpoint = fixture_open(&none, ST_STORAGE_AUTO, 0);
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, NULL, &err));
    SAYS("sshs_model_hash");
    st_close(checkpoint);
}

/* Nothing can be damaged where there is nothing. */
static void verify_without_tensors(void) {
    const fixture nothing = {NULL, 0, "{\"format\":\"pt\"}", 0};
    st_checkpoint *checkpoint = fixture_open(&nothing, ST_STORAGE_AUTO, 0);
    st_verify_report report;
    OK(st_verify(checkpoint, NULL, &report, &err));
    CHECK(report.bytes == 0 && report.tensors == 0 && report.checks == 0 && report.first_bad_tensor == ST_ALL);
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.checks = ST_CHECK_CRC;
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, &report, &err));
    st_close(checkpoint);
    for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
        OK(open_as(fixture_write("nothing.safetensors", &nothing), ST_STORAGE_AUTO, 0, level, &checkpoint));
        st_close(checkpoint);
    }
}

static void verify_sha256_of_files(void) {
    static const char name[] = "dense_crc.safetensors", other[] = "mixed_bf16.safetensors";
    st_checkpoint *checkpoint = fixture_open_path(data_path(name), ST_STORAGE_AUTO, 0);
    char right[65], upper[65], wrong[65], not_hex[65], longer[67];
    strcpy(right, sha256_of(name));
    for (size_t i = 0; i < 65; i++)
        upper[i] = right[i] >= 'a' ? (char)(right[i] - 'a' + 'A') : right[i];
    strcpy(wrong, right);
    wrong[63] = right[63] == '0' ? '1' : '0';
    strcpy(not_hex, right);
    not_hex[10] = 'g';
    snprintf(longer, sizeof(longer), "0x%s", right);
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    st_verify_report report;
    const char *digests[2] = {right, NULL};
    options.sha256 = digests;
    options.sha256_len = 1;
    for (int asked = 0; asked < 2; asked++) {
        options.checks = asked ? ST_CHECK_FILE_SHA256 : 0;
        for (int i = 0; i < 2; i++) {
            digests[0] = i ? upper : right;
            OK(st_verify(checkpoint, &options, &report, &err));
            CHECK(report.checks == (asked ? ST_CHECK_FILE_SHA256 : ST_CHECK_FILE_SHA256 | ST_CHECK_CRC));
            st_info info;
            CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK && report.bytes == info.file_bytes);
            CHECK(report.tensors == st_len(checkpoint));
        }
        digests[0] = wrong;
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, &report, &err));
        SAYS(wrong);
        SAYS(right);
        SAYS(name);
        CHECK(report.bad_checks == ST_CHECK_FILE_SHA256 && report.bad_shards == 1 && report.bad_tensors == 0);
        const char *const malformed[] = {not_hex, longer, "", right + 1};
        for (size_t i = 0; i < LEN(malformed); i++) {
            digests[0] = malformed[i];
            FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, &report, &err));
            SAYS("sha256[0]");
        }
        /* One that is not known is none. */
        digests[0] = NULL;
        if (asked)
            FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, &report, &err));
        else
            OK(st_verify(checkpoint, &options, &report, &err));
    }
    digests[0] = right;
    options.checks = 0;
    options.sha256_len = 2;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, &report, &err));
    options.sha256 = NULL;
    options.sha256_len = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, &report, &err));
    options.sha256_len = 0;
    OK(st_verify(checkpoint, &options, &report, &err));
    options.sha256 = digests;
    OK(st_verify(checkpoint, &options, &report, &err));
    CHECK(report.checks == ST_CHECK_CRC);
    st_close(checkpoint);

    /* The only way to verify a file that has no sums. */
    checkpoint = fixture_open_path(data_path(other), ST_STORAGE_AUTO, 0);
    digests[0] = sha256_of(other);
    options.sha256_len = 1;
    OK(st_verify(checkpoint, &options, &report, &err));
    CHECK(report.checks == ST_CHECK_FILE_SHA256);
    st_close(checkpoint);

    /* Every byte counts: those of the header, and a tensor's. */
    size_t len;
    unsigned char *bytes = fixture_slurp(data_path(other), &len);
    const char *copy = fixture_path("copy.safetensors");
    const char *key = memmem(bytes, len, "\"ms\"", 4);
    CHECK(key);
    const uint64_t flipped[] = {(uint64_t)((const unsigned char *)key + 1 - bytes), len - 1};
    for (size_t i = 0; i < LEN(flipped); i++) {
        fixture_write_bytes(copy, bytes, len);
        fixture_flip(copy, flipped[i]);
        checkpoint = fixture_open_path(copy, ST_STORAGE_AUTO, 0);
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, NULL, &err));
        st_close(checkpoint);
    }
    free(bytes);
}

static void verify_arguments(void) {
    const char *path = write_parts("arguments.safetensors", SUMS);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    st_verify_report report;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(NULL, NULL, &report, &err));
    struct {
        st_verify_options options;
        uint64_t newer;
    } grown = {ST_VERIFY_OPTIONS_INIT, 0};
    st_verify_options *options = &grown.options;
    for (uint32_t bit = 16; bit; bit <<= 1) {
        options->checks = bit;
        FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, options, &report, &err));
    }
    options->checks = 0;
    for (uint32_t bit = 2; bit; bit <<= 1) {
        options->flags = bit | ST_VERIFY_AROUND_CACHE;
        FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, options, &report, &err));
    }
    options->flags = 0;
    options->reserved = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, options, &report, &err));
    options->reserved = 0;
    const size_t sizes[] = {0, 1, sizeof(*options) - 1};
    for (size_t i = 0; i < LEN(sizes); i++) {
        options->struct_size = sizes[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, options, &report, &err));
    }
    options->struct_size = sizeof(grown);
    OK(st_verify(checkpoint, options, &report, &err));
    grown.newer = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, options, &report, &err));
    options->struct_size = sizeof(*options);
    for (uint32_t workers = 0; workers < 4; workers++) {
        options->workers = workers == 3 ? UINT32_MAX : workers;
        OK(st_verify(checkpoint, options, NULL, &err));
    }
    CHECK(st_verify(checkpoint, NULL, NULL, NULL) == ST_OK);
    st_close(checkpoint);

    st_open_options open = ST_OPEN_OPTIONS_INIT;
    const int32_t levels[] = {-1, 4, INT32_MAX};
    for (size_t i = 0; i < LEN(levels); i++) {
        open.verify = levels[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, st_open(path, &open, &checkpoint, &err));
    }
    open.verify = 0;
    open.reserved = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open(path, &open, &checkpoint, &err));
}

/* --- st_open_options.verify ------------------------------------------------------------------------------------------------ */

static void verify_levels(void) {
    const char *good = write_parts("good.safetensors", SUMS), *without = write_parts("without.safetensors", 0);
    const char *crc_only = write_parts("crc.safetensors", ST_WRITE_CRC), *bad = write_damaged("bad.safetensors", SUMS, LARGE);
    const char *bad_crc = write_damaged("bad_crc.safetensors", ST_WRITE_CRC, ODD);
    const struct {
        const char *path;
        st_status outcomes[4]; /* of each level */
    } opened[] = {
        {good, {ST_OK, ST_OK, ST_OK, ST_OK}},
        {without, {ST_OK, ST_OK, ST_ERR_CHECKSUM_MISSING, ST_ERR_CHECKSUM_MISSING}},
        {crc_only, {ST_OK, ST_OK, ST_ERR_CHECKSUM_MISSING, ST_OK}},
        {bad, {ST_OK, ST_OK, ST_OK, ST_ERR_CHECKSUM_MISMATCH}},
        {bad_crc, {ST_OK, ST_OK, ST_ERR_CHECKSUM_MISSING, ST_ERR_CHECKSUM_MISMATCH}},
    };
    for (size_t i = 0; i < LEN(opened); i++)
        for (size_t s = 0; s < LEN(fixture_storages); s++)
            for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
                st_checkpoint *checkpoint = (st_checkpoint *)&err;
                const st_status outcome = opened[i].outcomes[level];
                if (outcome != ST_OK) {
                    FAILS(outcome, open_as(opened[i].path, fixture_storages[s], 0, level, &checkpoint));
                    CHECK(!checkpoint);
                    continue;
                }
                OK(open_as(opened[i].path, fixture_storages[s], 0, level, &checkpoint));
                const void *data;
                OK(st_tensor_ptr(checkpoint, index_of(checkpoint, SMALL), &data, NULL, &err));
                CHECK(memcmp(data, bytes_of(SMALL), SMALL_SIZE) == 0);
                st_close(checkpoint);
            }
}

static const st_range first_row = {0, 1};

enum { PTR, VIEW, SLICE_VIEW, DLPACK, DLPACK_SLICE, OLD_DLPACK, ACQUIRE, READ, WAYS };

/* Hands a tensor out, and gives the status. */
static st_status hand_out(st_checkpoint *checkpoint, size_t part, int way) {
    static unsigned char dst[LARGE_ROWS * LARGE_ROW];
    const size_t index = index_of(checkpoint, part);
    const unsigned char *expected = bytes_of(part);
    const size_t nbytes = parts[part].nbytes, row = parts[part].rank ? nbytes / parts[part].shape[0] : nbytes;
    const size_t ranges = parts[part].rank ? 1 : 0;
    const void *data;
    st_view view;
    DLManagedTensorVersioned *managed;
    DLManagedTensor *old;
    st_status status;
    switch (way) {
    case PTR:
        status = st_tensor_ptr(checkpoint, index, &data, NULL, &err);
        CHECK(status != ST_OK || memcmp(data, expected, nbytes) == 0);
        return status;
    case VIEW:
        status = st_tensor_view(checkpoint, index, NULL, 0, &view, &err);
        CHECK(status != ST_OK || memcmp(view.data, expected, nbytes) == 0);
        return status;
    case SLICE_VIEW:
        status = st_tensor_view(checkpoint, index, &first_row, ranges, &view, &err);
        CHECK(status != ST_OK || memcmp(view.data, expected, row) == 0);
        return status;
    case DLPACK:
    case DLPACK_SLICE:
        status = st_tensor_dlpack(checkpoint, index, way == DLPACK ? NULL : &first_row, ranges, &managed, &err);
        if (status == ST_OK) {
            CHECK(memcmp(managed->dl_tensor.data, expected, way == DLPACK ? nbytes : row) == 0);
            managed->deleter(managed);
        }
        return status;
    case OLD_DLPACK:
        status = st_tensor_dlpack_unversioned(checkpoint, index, NULL, 0, &old, &err);
        if (status == ST_OK) {
            CHECK(memcmp(old->dl_tensor.data, expected, nbytes) == 0);
            old->deleter(old);
        }
        return status;
    case ACQUIRE:
        status = st_acquire(checkpoint, index, &data, NULL, &err);
        if (status == ST_OK) {
            CHECK(memcmp(data, expected, nbytes) == 0);
            CHECK(st_release(checkpoint, index, NULL) == ST_OK);
        }
        return status;
    default:
        status = st_tensor_read(checkpoint, index, NULL, 0, dst, sizeof(dst), &err);
        CHECK(status != ST_OK || memcmp(dst, expected, nbytes) == 0);
        return status;
    }
}

static void first_use_in_each_way(void) {
    for (size_t bad = 0; bad < PARTS; bad++) {
        if (bad == EMPTY)
            continue;
        const char *path = write_damaged("used.safetensors", ST_WRITE_BLAKE3, bad);
        for (size_t s = 0; s < LEN(fixture_storages); s++)
            for (uint32_t flags = 0; flags <= ST_OPEN_COPY_ON_WRITE; flags++)
                for (int first = 0; first < WAYS; first += test_is_instrumented() ? 3 : 1) {
                    st_checkpoint *checkpoint;
                    OK(open_as(path, fixture_storages[s], flags, ST_VERIFY_FIRST_USE, &checkpoint));
                    /* In each way, beginning with another, and again. */
                    for (int way = first; way < first + WAYS + 1; way++) {
                        FAILS(ST_ERR_CHECKSUM_MISMATCH, hand_out(checkpoint, bad, way % WAYS));
                        SAYS(parts[bad].name);
                    }
                    for (size_t part = 0; part < PARTS; part++)
                        if (part != bad && part != EMPTY)
                            OK(hand_out(checkpoint, part, (first + (int)part) % WAYS));
                    const void *data;
                    OK(st_tensor_ptr(checkpoint, index_of(checkpoint, EMPTY), &data, NULL, &err));
                    /* What is verified once is held no more than without verifying. */
                    st_residency_info held;
                    OK(st_residency(checkpoint, index_of(checkpoint, bad), &held, &err));
                    CHECK(held.copied_bytes == 0 && held.in_use_bytes == 0 && held.charged_bytes == 0);
                    st_close(checkpoint);
                }
    }
}

/* A slice that is read is not verified, unless it is all of the tensor. */
static void first_use_leaves_slices_alone(void) {
    const char *path = write_damaged("slices.safetensors", ST_WRITE_BLAKE3, SMALL);
    st_checkpoint *checkpoint;
    unsigned char dst[SMALL_SIZE];
    const st_range whole[2] = {{0, ST_END}, {0, 3}};
    OK(open_as(path, ST_STORAGE_AUTO, 0, ST_VERIFY_FIRST_USE, &checkpoint));
    const size_t index = index_of(checkpoint, SMALL);
    for (int again = 0; again < 2; again++) {
        OK(st_tensor_read(checkpoint, index, &first_row, 1, dst, sizeof(dst), &err));
        CHECK(memcmp(dst, bytes_of(SMALL), SMALL_SIZE / 4) == 0);
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_tensor_read(checkpoint, index, whole, 2, dst, sizeof(dst), &err));
    }
    /* Wrong arguments are wrong first of all. */
    st_view view;
    const st_range beyond = {0, 5};
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_view(checkpoint, index, &beyond, 1, &view, &err));
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, index, NULL, 0, dst, 3, &err));
    st_close(checkpoint);
}

/* What we write to memory is ours: the file is what is verified, before it and after. */
static void first_use_with_copy_on_write(void) {
    const char *path = write_parts("cow.safetensors", ST_WRITE_BLAKE3);
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint;
        OK(open_as(path, fixture_storages[s], ST_OPEN_COPY_ON_WRITE, ST_VERIFY_FIRST_USE, &checkpoint));
        for (size_t part = 0; part < PARTS; part++) {
            const void *data;
            OK(st_tensor_ptr(checkpoint, index_of(checkpoint, part), &data, NULL, &err));
            memset((void *)data, 0xee, parts[part].nbytes);
            OK(st_tensor_ptr(checkpoint, index_of(checkpoint, part), &data, NULL, &err));
            CHECK(parts[part].nbytes == 0 || *(const unsigned char *)data == 0xee);
            if (part != EMPTY)
                OK(hand_out(checkpoint, part, READ));
        }
        OK(st_verify(checkpoint, NULL, NULL, &err));
        st_close(checkpoint);
    }
}

/* Copies that went are read again, and are not verified again: here one that was evicted. */
static void first_use_and_eviction(void) {
    const char *path = write_parts("evicted.safetensors", ST_WRITE_BLAKE3);
    st_checkpoint *checkpoint;
    OK(open_as(path, ST_STORAGE_READ, 0, ST_VERIFY_FIRST_USE, &checkpoint));
    OK(hand_out(checkpoint, LARGE, ACQUIRE));
    OK(st_evict(checkpoint, ST_ALL, 0, &err));
    OK(hand_out(checkpoint, LARGE, ACQUIRE));
    /* But it is noticed that the file has changed. */
    OK(st_evict(checkpoint, ST_ALL, 0, &err));
    fixture_flip(path, place_of(path, LARGE));
    FAILS(ST_ERR_FILE_CHANGED, hand_out(checkpoint, LARGE, ACQUIRE));
    SAYS("large");
    st_close(checkpoint);
}

/* --- files that change ------------------------------------------------------------------------------------------------------ */

static const int32_t of_files[] = {ST_STORAGE_MMAP, ST_STORAGE_READ};

static void a_file_that_is_overwritten(void) {
    for (size_t s = 0; s < LEN(of_files); s++)
        for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
            const char *path = write_parts("overwritten.safetensors", SUMS);
            const uint64_t place = place_of(path, SMALL);
            st_checkpoint *checkpoint;
            OK(open_as(path, of_files[s], 0, level, &checkpoint));
            fixture_flip(path, place);
            st_verify_report report;
            FAILS(ST_ERR_FILE_CHANGED, st_verify(checkpoint, NULL, &report, &err));
            SAYS("overwritten.safetensors");
            /* Whether or not the bytes are what they were. */
            fixture_flip(path, place);
            FAILS(ST_ERR_FILE_CHANGED, st_verify(checkpoint, NULL, &report, &err));
            unsigned char dst[SMALL_SIZE];
            const size_t index = index_of(checkpoint, SMALL);
            if (level == ST_VERIFY_NONE) {
                OK(hand_out(checkpoint, SMALL, READ));
            } else {
                FAILS(ST_ERR_FILE_CHANGED, hand_out(checkpoint, SMALL, READ));
                SAYS("small");
                FAILS(ST_ERR_FILE_CHANGED, st_tensor_read(checkpoint, index, &first_row, 1, dst, sizeof(dst), &err));
            }
            if (level == ST_VERIFY_FIRST_USE)
                for (int way = 0; way < WAYS; way++)
                    FAILS(ST_ERR_FILE_CHANGED, hand_out(checkpoint, LARGE, way));
            /* Who sets the time back is not noticed, as the header says. */
            make_old(path);
            OK(hand_out(checkpoint, SMALL, READ));
            OK(hand_out(checkpoint, LARGE, PTR));
            OK(st_verify(checkpoint, NULL, NULL, &err));
            st_close(checkpoint);
        }
}

/* Then the bytes tell, where there are digests. */
static void a_file_that_is_overwritten_and_its_time_set_back(void) {
    for (size_t s = 0; s < LEN(of_files); s++) {
        const char *path = write_parts("secretly.safetensors", SUMS);
        st_checkpoint *checkpoint;
        OK(open_as(path, of_files[s], 0, ST_VERIFY_FIRST_USE, &checkpoint));
        OK(hand_out(checkpoint, ODD, PTR));
        fixture_flip(path, place_of(path, ODD));
        fixture_flip(path, place_of(path, LARGE) + 5);
        make_old(path);
        FAILS(ST_ERR_CHECKSUM_MISMATCH, hand_out(checkpoint, LARGE, PTR));
        /* What was verified is not verified again. */
        const void *data;
        OK(st_tensor_ptr(checkpoint, index_of(checkpoint, ODD), &data, NULL, &err));
        st_verify_report report;
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, &report, &err));
        CHECK(report.bad_tensors == 2);
        st_close(checkpoint);
    }
}

static void a_file_that_is_truncated(void) {
    for (size_t s = 0; s < LEN(of_files); s++)
        for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
            const char *path = write_parts("truncated.safetensors", SUMS);
            const uint64_t place = place_of(path, LARGE);
            st_checkpoint *checkpoint;
            OK(open_as(path, of_files[s], 0, level, &checkpoint));
            CHECK(truncate(path, (off_t)place + 100) == 0);
            make_old(path);
            FAILS(ST_ERR_TRUNCATED, st_verify(checkpoint, NULL, NULL, &err));
            SAYS("truncated.safetensors");
            FAILS(ST_ERR_TRUNCATED, hand_out(checkpoint, LARGE, READ));
            if (level == ST_VERIFY_FIRST_USE)
                for (int way = 0; way < WAYS; way++)
                    FAILS(ST_ERR_TRUNCATED, hand_out(checkpoint, SMALL, way));
            /* Longer again, and with a hole: that is for the sums to find, and they do. */
            CHECK(truncate(path, (off_t)(place + parts[LARGE].nbytes + parts[ODD].nbytes + parts[SMALL].nbytes)) == 0);
            make_old(path);
            FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, NULL, &err));
            if (level == ST_VERIFY_FIRST_USE)
                FAILS(ST_ERR_CHECKSUM_MISMATCH, hand_out(checkpoint, LARGE, PTR));
            st_close(checkpoint);
        }
}

/* The old file is still there for whoever has it open. */
static void a_file_that_is_replaced(void) {
    for (size_t s = 0; s < LEN(of_files); s++)
        for (int32_t level = ST_VERIFY_NONE; level <= ST_VERIFY_FULL; level++) {
            const char *path = write_parts("replaced.safetensors", SUMS);
            st_checkpoint *checkpoint;
            OK(open_as(path, of_files[s], 0, level, &checkpoint));
            fixture_put_quickly(path, &(fixture_generation){1, 2, 100, 0, 0, 0});
            OK(st_verify(checkpoint, NULL, NULL, &err));
            for (int way = 0; way < WAYS; way++)
                OK(hand_out(checkpoint, way % 2 ? LARGE : SMALL, way));
            CHECK(unlink(path) == 0);
            OK(st_verify(checkpoint, NULL, NULL, &err));
            st_close(checkpoint);
        }
}

/* --- tasks ------------------------------------------------------------------------------------------------------------------ */

enum { SPARSE_TENSORS = 64 };

/* A large file of zeros that takes no room on the disk, with a sum that is wrong. */
static const char *write_sparse(uint64_t each) {
    char *header;
    size_t len;
    FILE *text = open_memstream(&header, &len);
    CHECK(text);
    fprintf(text, "{\"__metadata__\":{\"crc_num\":\"1\"}");
    for (uint64_t i = 0; i < SPARSE_TENSORS; i++)
        fprintf(text, ",\"t%d\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[%llu,%llu]}", (int)i,
                (unsigned long long)each, (unsigned long long)(i * each), (unsigned long long)((i + 1) * each));
    fprintf(text, "}");
    while (ftell(text) % 8)
        fputc(' ', text);
    CHECK(fclose(text) == 0);
    const char *path = fixture_path("sparse.safetensors");
    const unsigned char prefix[8] = {(unsigned char)len, (unsigned char)(len >> 8), (unsigned char)(len >> 16)};
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(prefix, 1, 8, file) == 8 && fwrite(header, 1, len, file) == len && fclose(file) == 0);
    free(header);
    if (truncate(path, (off_t)(8 + len + SPARSE_TENSORS * each)) != 0)
        SKIP("no such large file here");
    return path;
}

static struct {
    st_checkpoint *checkpoint;
    st_task *task;
    atomic_bool ended;
    st_status status;
    st_verify_report report;
} call;

static void *verify_in_thread(void *nothing) {
    (void)nothing;
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.task = call.task;
    options.flags = ST_VERIFY_AROUND_CACHE;
    call.status = st_verify(call.checkpoint, &options, &call.report, &err);
    atomic_store(&call.ended, true);
    return NULL;
}

static pthread_t start_call(uint64_t each) {
    call.checkpoint = fixture_open_path(write_sparse(each), ST_STORAGE_AUTO, 0);
    atomic_store(&call.ended, false);
    OK(st_task_new(&call.task, &err));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, verify_in_thread, NULL) == 0);
    return thread;
}

static st_progress progress_of_call(void) {
    st_progress progress;
    CHECK(st_task_progress(call.task, &progress) == ST_OK);
    return progress;
}

static void verify_is_cancelled(void) {
    const size_t threads = test_entries("/proc/self/task"), descriptors = test_entries("/proc/self/fd");
    /* 64 GiB: if cancelling did nothing, this would end by the limit of time. */
    const pthread_t thread = start_call(1ull << 30);
    while (progress_of_call().bytes_done == 0)
        usleep(100);
    CHECK(!atomic_load(&call.ended));
    st_task_cancel(call.task);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(call.status == ST_ERR_CANCELLED);
    test_threads_end(threads);
    const st_progress progress = progress_of_call();
    CHECK(progress.bytes_done < progress.bytes_total && progress.bytes_total == (uint64_t)SPARSE_TENSORS << 30);
    CHECK(progress.items_total == SPARSE_TENSORS);
    /* It stays cancelled; and the checkpoint is as good as before. */
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.task = call.task;
    FAILS(ST_ERR_CANCELLED, st_verify(call.checkpoint, &options, NULL, &err));
    st_task_free(call.task);
    st_close(call.checkpoint);
    st_checkpoint *checkpoint = fixture_open_path(write_parts("after.safetensors", SUMS), ST_STORAGE_AUTO, 0);
    OK(st_verify(checkpoint, NULL, NULL, &err));
    st_close(checkpoint);
    CHECK(test_entries("/proc/self/fd") == descriptors);
}

static void verify_progress_grows_to_the_total(void) {
    const uint64_t each = test_is_instrumented() ? 1 << 17 : 4 << 20;
    const pthread_t thread = start_call(each);
    st_progress last = {0};
    while (!atomic_load(&call.ended)) {
        const st_progress progress = progress_of_call();
        CHECK(progress.bytes_done >= last.bytes_done && progress.items_done >= last.items_done);
        CHECK(progress.bytes_total >= last.bytes_total && progress.items_total >= last.items_total);
        last = progress;
        usleep(50);
    }
    CHECK(pthread_join(thread, NULL) == 0 && call.status == ST_ERR_CHECKSUM_MISMATCH);
    last = progress_of_call();
    CHECK(last.bytes_done == SPARSE_TENSORS * each && last.bytes_total == last.bytes_done);
    CHECK(last.items_done == SPARSE_TENSORS && last.items_total == SPARSE_TENSORS && last.bytes_per_second > 0);
    CHECK(call.report.bytes == last.bytes_done && call.report.tensors == SPARSE_TENSORS);
    const st_progress later = progress_of_call();
    CHECK(memcmp(&later, &last, sizeof(last)) == 0);
    st_task_free(call.task);
    st_close(call.checkpoint);
}

/* The call has a reference of its own. */
static void verify_goes_on_when_its_task_is_freed(void) {
    const pthread_t thread = start_call(test_is_instrumented() ? 1 << 17 : 4 << 20);
    while (progress_of_call().bytes_total == 0 && !atomic_load(&call.ended))
        usleep(50);
    st_task_free(call.task);
    CHECK(pthread_join(thread, NULL) == 0 && call.status == ST_ERR_CHECKSUM_MISMATCH);
    CHECK(call.report.tensors == SPARSE_TENSORS);
    st_close(call.checkpoint);
}

/* --- threads ---------------------------------------------------------------------------------------------------------------- */

enum { MOST_THREADS = 16 };

static struct {
    st_checkpoint *checkpoint;
    pthread_barrier_t start;
    bool apart; /* each thread begins with another tensor */
} race;

static const bool is_bad[PARTS] = {[LARGE] = true, [SMALL] = true};

static void *use_first(void *number) {
    const size_t thread = (size_t)number;
    pthread_barrier_wait(&race.start);
    for (size_t k = 0; k < 2 * PARTS; k++) {
        const size_t part = (k + (race.apart ? thread : 0)) % PARTS;
        st_verify_report report;
        const void *data;
        if (part == EMPTY) {
            OK(st_tensor_ptr(race.checkpoint, index_of(race.checkpoint, EMPTY), &data, NULL, &err));
        } else if (is_bad[part]) {
            /* Not by hand_out: its static memory is one thread's. */
            const size_t index = index_of(race.checkpoint, part);
            st_view view;
            FAILS(ST_ERR_CHECKSUM_MISMATCH, st_tensor_ptr(race.checkpoint, index, &data, NULL, &err));
            SAYS(parts[part].name);
            FAILS(ST_ERR_CHECKSUM_MISMATCH, st_tensor_view(race.checkpoint, index, NULL, 0, &view, &err));
        } else {
            OK(hand_out(race.checkpoint, part, (int)((thread + k) % READ)));
        }
        if (thread == 0 && k == PARTS) {
            FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(race.checkpoint, NULL, &report, &err));
            CHECK(report.bad_tensors == 2);
        }
    }
    return NULL;
}

static void first_use_by_many_threads(void) {
    const char *path = write_damaged("raced.safetensors", ST_WRITE_BLAKE3, LARGE);
    fixture_flip(path, place_of(path, SMALL));
    const size_t threads = test_is_instrumented() ? 4 : MOST_THREADS;
    const int rounds = test_is_instrumented() ? 2 : 20;
    for (int round = 0; round < rounds; round++)
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            OK(open_as(path, fixture_storages[s], 0, ST_VERIFY_FIRST_USE, &race.checkpoint));
            race.apart = round % 2;
            pthread_t ids[MOST_THREADS];
            CHECK(pthread_barrier_init(&race.start, NULL, (unsigned)threads) == 0);
            for (size_t i = 0; i < threads; i++)
                CHECK(pthread_create(&ids[i], NULL, use_first, (void *)i) == 0);
            for (size_t i = 0; i < threads; i++)
                CHECK(pthread_join(ids[i], NULL) == 0);
            pthread_barrier_destroy(&race.start);
            st_close(race.checkpoint);
        }
}

/* --- shards ----------------------------------------------------------------------------------------------------------------- */

static void verify_shards_of_which_one_is_bad(void) {
    enum { COUNT = 3, EACH = 2 };
    const fixture_generation generation = {1, COUNT * EACH, 5000, COUNT, SUMS, 0};
    char index_path[512], shard_path[512];
    for (size_t bad = 0; bad < COUNT; bad++) {
        const char *path = fixture_model_in("shards");
        snprintf(index_path, sizeof(index_path), "%s.index.json", path);
        fixture_put_quickly(path, &generation);
        st_checkpoint *checkpoint = fixture_open_path(index_path, ST_STORAGE_AUTO, 0);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        /* Sums differ from shard to shard, but they say nothing about the checkpoint. */
        CHECK(info.metadata_conflicts == 0);
        OK(st_verify(checkpoint, NULL, NULL, &err));
        const size_t index = bad * EACH + 1;
        st_tensor tensor;
        OK(st_tensor_info(checkpoint, index, &tensor, &err));
        CHECK(tensor.shard == bad);
        strcpy(shard_path, st_shard_path(checkpoint, bad));
        char name[32];
        strcpy(name, tensor.name);
        st_close(checkpoint);
        fixture_flip(shard_path, tensor.file_offset + 77);

        checkpoint = fixture_open_path(index_path, ST_STORAGE_AUTO, 0);
        st_verify_report report;
        FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, NULL, &report, &err));
        SAYS(strrchr(shard_path, '/') + 1);
        SAYS(name);
        CHECK(report.bad_shards == 1 && report.first_bad_shard == bad && report.checks == ALL_CHECKS);
        CHECK(report.bad_tensors == 1 && report.first_bad_tensor == index && report.tensors == COUNT * EACH);
        CHECK(report.bad_checks == ALL_CHECKS && report.bytes == COUNT * EACH * 5000);
        st_close(checkpoint);

        FAILS(ST_ERR_CHECKSUM_MISMATCH, open_as(index_path, ST_STORAGE_AUTO, 0, ST_VERIFY_FULL, &checkpoint));
        OK(open_as(index_path, ST_STORAGE_AUTO, 0, ST_VERIFY_FIRST_USE, &checkpoint));
        for (size_t i = 0; i < COUNT * EACH; i++) {
            const void *data;
            if (i == index)
                FAILS(ST_ERR_CHECKSUM_MISMATCH, st_tensor_ptr(checkpoint, i, &data, NULL, &err));
            else
                OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
        }
        st_close(checkpoint);
    }
}

/* Of shards that have sums of different kinds each is verified by its own. */
static void verify_shards_of_different_kinds(void) {
    const fixture_tensor tensors[2] = {{"a", "U8", "[3]", 3, NULL}, {"b", "U8", "[2]", 2, NULL}};
    const fixture first = {&tensors[0], 1, "{\"crc_num\":\"0\"}", 0};
    const fixture second = {&tensors[1], 1, NULL, 0};
    CHECK(mkdir(fixture_path("kinds"), 0755) == 0);
    fixture_write("kinds/m-00001-of-00002.safetensors", &first);
    fixture_write("kinds/m-00002-of-00002.safetensors", &second);
    st_checkpoint *checkpoint = fixture_open_path(fixture_path("kinds"), ST_STORAGE_AUTO, 0);
    /* What is missing is found before anything is read. */
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, NULL, NULL, &err));
    SAYS("m-00002-of-00002");
    const char *digests[3] = {NULL, "0000000000000000000000000000000000000000000000000000000000000000", NULL};
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.sha256 = digests;
    options.sha256_len = 2;
    st_verify_report report;
    FAILS(ST_ERR_CHECKSUM_MISMATCH, st_verify(checkpoint, &options, &report, &err));
    CHECK(report.bad_shards == 2 && report.first_bad_shard == 0 && report.tensors == 2);
    CHECK(report.bad_checks == (ST_CHECK_CRC | ST_CHECK_FILE_SHA256));
    options.sha256_len = 1;
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, NULL, &err));
    options.sha256_len = 3;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_verify(checkpoint, &options, NULL, &err));
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(verify_crc_of_mindspore),
    CASE(verify_wrong_crc_of_mindspore),
    CASE(verify_each_kind_alone_and_together),
    CASE(verify_finds_a_flipped_bit),
    CASE(verify_counts_bad_tensors),
    CASE(verify_finds_a_changed_header),
    CASE(verify_what_is_no_checksum),
    CASE(sha256_under_either_key),
    CASE(verify_without_tensors),
    CASE(verify_sha256_of_files),
    CASE(verify_arguments),
    CASE(verify_levels),
    CASE(first_use_in_each_way),
    CASE(first_use_leaves_slices_alone),
    CASE(first_use_with_copy_on_write),
    CASE(first_use_and_eviction),
    CASE(a_file_that_is_overwritten),
    CASE(a_file_that_is_overwritten_and_its_time_set_back),
    CASE(a_file_that_is_truncated),
    CASE(a_file_that_is_replaced),
    CASE(verify_is_cancelled),
    CASE(verify_progress_grows_to_the_total),
    CASE(verify_goes_on_when_its_task_is_freed),
    CASE(first_use_by_many_threads),
    CASE(verify_shards_of_which_one_is_bad),
    CASE(verify_shards_of_different_kinds),
};

TEST_MAIN(cases)
