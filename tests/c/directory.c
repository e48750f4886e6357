#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names in an order that is not that of their bytes; escapes, other scripts, prefixes of each other. */
static const struct {
    const char *json, *name;
} names[] = {
    {"model.layers.1.w", "model.layers.1.w"},
    {"model.layers.10.w", "model.layers.10.w"},
    {"model.layers.1.b", "model.layers.1.b"},
    {"model", "model"},
    {"model.layers.2.w", "model.layers.2.w"},
    {"", ""},
    {"\\u6743\\u91cd.\\ud83d\\ude00", "\xe6\x9d\x83\xe9\x87\x8d.\xf0\x9f\x98\x80"},
    {"\xe6\x9d\x83\xe5\x80\xbc", "\xe6\x9d\x83\xe5\x80\xbc"},
    {"quote\\\"back\\\\slash\\/\\n", "quote\"back\\slash/\n"},
    {"{\\\"dtype\\\":\\\"F32\\\"}", "{\"dtype\":\"F32\"}"},
    {" spaces ", " spaces "},
    {"__metadata", "__metadata"},
};
enum { NAMES = sizeof(names) / sizeof(names[0]) };

static st_checkpoint *open_names(int32_t storage) {
    fixture_tensor tensors[NAMES];
    for (size_t i = 0; i < NAMES; i++)
        tensors[i] = (fixture_tensor){names[i].json, "U8", "[1]", 1, NULL};
    const fixture fixture = {tensors, NAMES, "{\"z\":\"last\",\"a\":\"\",\"\\u6743\":\"\\\"x\\\\\",\"nul\":\"a\\u0000b\"}", 0};
    return fixture_open(&fixture, storage, 0);
}

static void len_and_keys(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = open_names(fixture_storages[s]);
        size_t len = 0;
        const char *const *keys = st_keys(checkpoint, &len);
        CHECK(keys && len == NAMES && st_len(checkpoint) == NAMES);
        for (size_t i = 0; i < NAMES; i++)
            CHECK(strcmp(keys[i], names[i].name) == 0);
        CHECK(st_keys(checkpoint, NULL) == keys);
        st_close(checkpoint);
    }
}

static void keys_stay_where_they_are(void) {
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    size_t len;
    const char *const *keys = st_keys(checkpoint, &len);
    const char *first = keys[0];
    const size_t *indices;
    CHECK(st_find_prefix(checkpoint, "", &indices, &len) == ST_OK);
    st_close(st_retain(checkpoint));
    CHECK(st_keys(checkpoint, &len) == keys && keys[0] == first);
    st_close(checkpoint);
}

static void find_every_name(void) {
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    for (size_t i = 0; i < NAMES; i++) {
        size_t index = 999;
        CHECK(st_find(checkpoint, names[i].name, &index) == ST_OK && index == i);
        index = 999;
        CHECK(st_find_n(checkpoint, names[i].name, strlen(names[i].name), &index) == ST_OK && index == i);
    }
    st_close(checkpoint);
}

static void find_what_is_not_there(void) {
    static const char *const absent[] = {
        "mode", "model.", "model.layers", "model.layers.1.w ", "Model", "\xe6\x9d\x83", "\xff", "__metadata__", "z", "\xe6\x9d\x83\xe9",
    };
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    for (size_t i = 0; i < LEN(absent); i++) {
        size_t index = 999;
        CHECK(st_find(checkpoint, absent[i], &index) == ST_ERR_NOT_FOUND);
        CHECK(st_find_n(checkpoint, absent[i], strlen(absent[i]), &index) == ST_ERR_NOT_FOUND);
        CHECK(index == 999);
    }
    st_close(checkpoint);
    checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    size_t index;
    CHECK(st_find(checkpoint, "", &index) == ST_ERR_NOT_FOUND);
    CHECK(st_find_n(checkpoint, "", 0, &index) == ST_ERR_NOT_FOUND);
    st_close(checkpoint);
}

static void find_n_of_a_part_of_a_string(void) {
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    /* Memory of its own size, so that a read past the end is seen by valgrind and sanitizers. */
    char *part = malloc(5);
    CHECK(part);
    memcpy(part, "model", 5);
    size_t index;
    CHECK(st_find_n(checkpoint, part, 5, &index) == ST_OK && index == 3);
    CHECK(st_find_n(checkpoint, part, 4, &index) == ST_ERR_NOT_FOUND);
    free(part);
    CHECK(st_find_n(checkpoint, "model.layers.1.b and more", 16, &index) == ST_OK && index == 2);
    CHECK(st_find_n(checkpoint, "model\0", 6, &index) == ST_ERR_NOT_FOUND);
    st_close(checkpoint);
}

static void find_prefix_gives_sorted_names(void) {
    static const struct {
        const char *prefix;
        size_t len;
    } prefixes[] = {
        {"", NAMES}, {"model.layers.1.", 2}, {"model.layers.1", 3}, {"model.layers.", 4}, {"model", 5}, {"model.layers.10.w", 1},
        {"model.layers.10.wx", 0}, {"absent", 0}, {"\xff", 0}, {"\xe6\x9d\x83", 2}, {"\xe6", 2}, {" ", 1}, {"~", 0},
    };
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    const char *const *keys = st_keys(checkpoint, NULL);
    for (size_t i = 0; i < LEN(prefixes); i++) {
        const size_t *indices = NULL, *again;
        size_t len = 999;
        CHECK(st_find_prefix(checkpoint, prefixes[i].prefix, &indices, &len) == ST_OK);
        CHECK(len == prefixes[i].len && indices);
        for (size_t k = 0; k < len; k++) {
            CHECK(strncmp(keys[indices[k]], prefixes[i].prefix, strlen(prefixes[i].prefix)) == 0);
            CHECK(k == 0 || strcmp(keys[indices[k - 1]], keys[indices[k]]) < 0);
        }
        CHECK(st_find_prefix(checkpoint, prefixes[i].prefix, &again, &len) == ST_OK && again == indices);
    }
    st_close(checkpoint);
}

static void tensor_info_of_the_sample(void) {
    static const struct {
        const char *name;
        st_dtype dtype;
        uint32_t rank;
        uint64_t shape[2], at, nbytes, alignment;
    } expected[SAMPLE_LEN] = {
        {"weight", ST_DTYPE_F32, 2, {4, 5}, 0, 80, 64},   {"bias", ST_DTYPE_F16, 1, {5, 0}, 80, 10, 16},
        {"odd", ST_DTYPE_I32, 1, {3, 0}, 90, 12, 2},      {"byte", ST_DTYPE_U8, 1, {1, 0}, 102, 1, 2},
        {"empty", ST_DTYPE_F64, 2, {0, 3}, 103, 0, 1},    {"scalar", ST_DTYPE_I64, 0, {0, 0}, 103, 8, 1},
    };
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        for (size_t i = 0; i < SAMPLE_LEN; i++) {
            st_tensor tensor;
            OK(st_tensor_info(checkpoint, i, &tensor, &err));
            CHECK(strcmp(tensor.name, expected[i].name) == 0 && tensor.name_len == strlen(expected[i].name));
            CHECK(tensor.name == st_keys(checkpoint, NULL)[i]);
            CHECK(tensor.dtype == expected[i].dtype && tensor.rank == expected[i].rank && tensor.shape);
            CHECK(memcmp(tensor.shape, expected[i].shape, tensor.rank * sizeof(uint64_t)) == 0);
            CHECK(tensor.nbytes == expected[i].nbytes && tensor.shard == 0);
            CHECK(tensor.file_offset == 8 + info.header_bytes + expected[i].at);
            /* The data starts at a multiple of 64, but which one depends on the header. */
            CHECK(tensor.alignment >= expected[i].alignment && tensor.file_offset % tensor.alignment == 0);
            CHECK(tensor.alignment == 4096 || tensor.file_offset % (2 * tensor.alignment) != 0);
        }
        st_close(checkpoint);
    }
}

static void alignment_is_at_most_a_page(void) {
    /* Four digits, like each number that takes their place: the header keeps its length. */
    char shape[16] = "[1000]";
    fixture_tensor tensors[] = {{"before", "U8", shape, 1000, NULL}, {"t", "F64", "[1]", 8, NULL}};
    const fixture fixture = {tensors, LEN(tensors), NULL, 0};
    const uint64_t offsets[] = {4096, 8192, 6144, 4096 + 8, 4096 + 1};
    const uint64_t alignments[] = {4096, 4096, 2048, 8, 1};
    st_tensor tensor;
    for (size_t i = 0; i < LEN(offsets); i++) {
        st_checkpoint *checkpoint = fixture_open(&fixture, ST_STORAGE_AUTO, 0);
        OK(st_tensor_info(checkpoint, 0, &tensor, &err));
        tensors[0].nbytes = offsets[i] - tensor.file_offset;
        snprintf(shape, sizeof(shape), "[%zu]", tensors[0].nbytes);
        st_close(checkpoint);
        checkpoint = fixture_open(&fixture, ST_STORAGE_AUTO, 0);
        OK(st_tensor_info(checkpoint, 1, &tensor, &err));
        CHECK(tensor.file_offset == offsets[i] && tensor.alignment == alignments[i]);
        st_close(checkpoint);
    }
}

static void tensor_info_outside(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    const size_t outside[] = {SAMPLE_LEN, SAMPLE_LEN + 1, 1u << 31, SIZE_MAX};
    for (size_t i = 0; i < LEN(outside); i++) {
        st_tensor tensor = {0};
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_info(checkpoint, outside[i], &tensor, &err));
        CHECK(tensor.name == NULL);
        char number[32];
        snprintf(number, sizeof(number), "%zu", outside[i]);
        SAYS(number);
        SAYS("6");
    }
    st_close(checkpoint);
}

static void tensor_order_is_that_of_the_header(void) {
    static const char text[] = "{\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[3,4]},"
                               "\"a\":{\"data_offsets\":[0,3],\"shape\":[3],\"dtype\":\"I8\"}}";
    unsigned char bytes[8 + sizeof(text) - 1 + 4] = {sizeof(text) - 1};
    memcpy(bytes + 8, text, sizeof(text) - 1);
    memcpy(bytes + 8 + sizeof(text) - 1, "abcz", 4);
    st_checkpoint *checkpoint;
    OK(st_open_buffer(bytes, sizeof(bytes), NULL, &checkpoint, &err));
    CHECK(strcmp(st_keys(checkpoint, NULL)[0], "z") == 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    CHECK(*(const char *)data == 'z');
    OK(st_tensor_ptr(checkpoint, 1, &data, NULL, &err));
    CHECK(memcmp(data, "abc", 3) == 0);
    st_close(checkpoint);
}

static void metadata_at_gives_entries_in_the_order_of_the_header(void) {
    static const struct {
        const char *key, *value;
    } expected[] = {{"z", "last"}, {"a", ""}, {"\xe6\x9d\x83", "\"x\\"}, {"nul", "a"}};
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    CHECK(st_metadata_len(checkpoint) == LEN(expected));
    for (size_t i = 0; i < LEN(expected); i++) {
        const char *key = NULL, *value = NULL;
        CHECK(st_metadata_at(checkpoint, i, &key, &value) == ST_OK);
        CHECK(strcmp(key, expected[i].key) == 0 && strcmp(value, expected[i].value) == 0);
        CHECK(st_metadata_get(checkpoint, key) == value);
    }
    const char *key = "untouched", *value = "untouched";
    CHECK(st_metadata_at(checkpoint, LEN(expected), &key, &value) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_metadata_at(checkpoint, SIZE_MAX, &key, &value) == ST_ERR_OUT_OF_RANGE);
    CHECK(strcmp(key, "untouched") == 0 && strcmp(value, "untouched") == 0);
    CHECK(st_metadata_at(checkpoint, 0, &key, NULL) == ST_OK && strcmp(key, "z") == 0);
    CHECK(st_metadata_at(checkpoint, 0, NULL, &value) == ST_OK && strcmp(value, "last") == 0);
    CHECK(st_metadata_at(checkpoint, 0, NULL, NULL) == ST_OK);
    st_close(checkpoint);
}

static void metadata_get_finds_exact_keys(void) {
    st_checkpoint *checkpoint = open_names(ST_STORAGE_AUTO);
    CHECK(strcmp(st_metadata_get(checkpoint, "z"), "last") == 0 && strcmp(st_metadata_get(checkpoint, "a"), "") == 0);
    CHECK(strcmp(st_metadata_get(checkpoint, "\xe6\x9d\x83"), "\"x\\") == 0);
    CHECK(!st_metadata_get(checkpoint, "") && !st_metadata_get(checkpoint, "last") && !st_metadata_get(checkpoint, "model"));
    CHECK(!st_metadata_get(checkpoint, "Z") && !st_metadata_get(checkpoint, "zz") && !st_metadata_get(checkpoint, "\xe6\x9d"));
    CHECK(!st_metadata_get(checkpoint, NULL));
    st_close(checkpoint);
}

static void metadata_len_of_shards_counts_each_key_once(void) {
    st_checkpoint *checkpoint = fixture_open_path(fixture_write_sharded("metadata", 1), ST_STORAGE_AUTO, 0);
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
    CHECK(st_metadata_len(checkpoint) == 3 && info.metadata_conflicts == SHARDED_CONFLICTS);
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < i; k++) {
            const char *one, *other;
            CHECK(st_metadata_at(checkpoint, i, &one, NULL) == ST_OK && st_metadata_at(checkpoint, k, &other, NULL) == ST_OK);
            CHECK(strcmp(one, other) != 0);
        }
    st_close(checkpoint);
}

static void metadata_len_of_files_without_metadata(void) {
    const fixture none = {NULL, 0, NULL, 0}, empty = {NULL, 0, "{}", 0};
    const fixture *const without[] = {&none, &empty};
    for (size_t i = 0; i < LEN(without); i++) {
        st_checkpoint *checkpoint = fixture_open(without[i], ST_STORAGE_AUTO, 0);
        const char *key;
        CHECK(st_metadata_len(checkpoint) == 0 && !st_metadata_get(checkpoint, "format"));
        CHECK(st_metadata_at(checkpoint, 0, &key, NULL) == ST_ERR_OUT_OF_RANGE);
        st_close(checkpoint);
    }
}

static void checkpoint_info_adds_up(void) {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    free(bytes);
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        CHECK(info.file_bytes == len && info.tensor_bytes == SAMPLE_DATA_SIZE);
        CHECK(info.header_bytes == len - 8 - SAMPLE_DATA_SIZE && info.writable == 0);
        st_close(checkpoint);
    }
}

static void shard_len_of_a_file_a_buffer_and_shards(void) {
    st_checkpoint *checkpoint;
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        CHECK(st_shard_len(checkpoint) == 1);
        st_close(checkpoint);
    }
    for (int with_index = 0; with_index < 2; with_index++) {
        checkpoint = fixture_open_path(fixture_write_sharded(with_index ? "indexed" : "numbered", with_index), ST_STORAGE_AUTO, 0);
        CHECK(st_shard_len(checkpoint) == SHARDS);
        for (size_t i = 0; i < SHARDED_LEN; i++) {
            st_tensor tensor;
            OK(st_tensor_info(checkpoint, i, &tensor, &err));
            CHECK(tensor.shard == fixture_sharded[i].shard);
        }
        st_close(checkpoint);
    }
}

static void shard_path_is_as_given_or_below_the_folder(void) {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    st_checkpoint *checkpoint;
    OK(st_open(path, NULL, &checkpoint, &err));
    CHECK(strcmp(st_shard_path(checkpoint, 0), path) == 0);
    CHECK(!st_shard_path(checkpoint, 1) && !st_shard_path(checkpoint, SIZE_MAX));
    st_close(checkpoint);
    checkpoint = fixture_open(&fixture_sample, ST_STORAGE_MEMORY, 0);
    CHECK(strcmp(st_shard_path(checkpoint, 0), "") == 0 && !st_shard_path(checkpoint, 1));
    st_close(checkpoint);
    checkpoint = fixture_open_path(fixture_write_sharded("paths", 1), ST_STORAGE_AUTO, 0);
    for (size_t i = 0; i < SHARDS; i++)
        CHECK(strcmp(st_shard_path(checkpoint, i), fixture_path_in("paths", fixture_shards[i])) == 0);
    CHECK(!st_shard_path(checkpoint, SHARDS));
    st_close(checkpoint);
}

static void null_checkpoint(void) {
    size_t number = 999;
    const size_t *indices = NULL;
    const char *key = NULL;
    st_tensor tensor = {0};
    st_info info = {0};
    CHECK(st_len(NULL) == 0);
    CHECK(st_keys(NULL, &number) == NULL && st_keys(NULL, NULL) == NULL);
    CHECK(st_find(NULL, "a", &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_n(NULL, "a", 1, &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_prefix(NULL, "a", &indices, &number) == ST_ERR_INVALID_ARGUMENT);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_info(NULL, 0, &tensor, &err));
    CHECK(st_checkpoint_info(NULL, &info) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_metadata_len(NULL) == 0);
    CHECK(st_metadata_at(NULL, 0, &key, &key) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_metadata_get(NULL, "a") == NULL);
    CHECK(st_shard_len(NULL) == 0);
    CHECK(st_shard_path(NULL, 0) == NULL);
    CHECK(number == 999 && !indices && !key && !tensor.name && info.file_bytes == 0);
}

static void null_arguments(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    size_t number = 999;
    const size_t *indices = NULL;
    CHECK(st_find(checkpoint, NULL, &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find(checkpoint, "weight", NULL) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_n(checkpoint, NULL, 1, &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_n(checkpoint, "weight", 6, NULL) == ST_ERR_INVALID_ARGUMENT);
    /* -1 where a length is asked for: no tensor has such a name. */
    CHECK(st_find_n(checkpoint, "weight", SIZE_MAX, &number) == ST_ERR_NOT_FOUND);
    CHECK(st_find_prefix(checkpoint, NULL, &indices, &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_prefix(checkpoint, "a", NULL, &number) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_find_prefix(checkpoint, "a", &indices, NULL) == ST_ERR_INVALID_ARGUMENT);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_info(checkpoint, 0, NULL, &err));
    CHECK(st_checkpoint_info(checkpoint, NULL) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_metadata_get(checkpoint, NULL) == NULL);
    CHECK(number == 999 && !indices);
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(len_and_keys),
    CASE(keys_stay_where_they_are),
    CASE(find_every_name),
    CASE(find_what_is_not_there),
    CASE(find_n_of_a_part_of_a_string),
    CASE(find_prefix_gives_sorted_names),
    CASE(tensor_info_of_the_sample),
    CASE(alignment_is_at_most_a_page),
    CASE(tensor_info_outside),
    CASE(tensor_order_is_that_of_the_header),
    CASE(metadata_at_gives_entries_in_the_order_of_the_header),
    CASE(metadata_get_finds_exact_keys),
    CASE(metadata_len_of_shards_counts_each_key_once),
    CASE(metadata_len_of_files_without_metadata),
    CASE(checkpoint_info_adds_up),
    CASE(shard_len_of_a_file_a_buffer_and_shards),
    CASE(shard_path_is_as_given_or_below_the_folder),
    CASE(null_checkpoint),
    CASE(null_arguments),
};

TEST_MAIN(cases)
