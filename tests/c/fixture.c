#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const fixture_tensor sample_tensors[SAMPLE_LEN] = {
    {"weight", "F32", "[4,5]", 80, NULL}, {"bias", "F16", "[5]", 10, NULL},   {"odd", "I32", "[3]", 12, NULL},
    {"byte", "U8", "[1]", 1, NULL},       {"empty", "F64", "[0,3]", 0, NULL}, {"scalar", "I64", "[]", 8, NULL},
};
const fixture fixture_sample = {sample_tensors, SAMPLE_LEN, "{\"format\":\"pt\",\"made by\":\"tests\"}", 0};

const int32_t fixture_storages[4] = {ST_STORAGE_AUTO, ST_STORAGE_MMAP, ST_STORAGE_READ, ST_STORAGE_MEMORY};

const fixture_part fixture_sharded[SHARDED_LEN] = {
    {"embed", 0, 0, 16384}, {"norm", 0, 16384, 10}, {"one", 1, 16394, 1}, {"three", 1, 16395, 12}, {"head", 2, 16407, 8192},
};
enum { SHARDED_SIZE = 16407 + 8192 };
const char *const fixture_shards[SHARDS] = {
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
};
const char fixture_index[] = "model.safetensors.index.json";

enum { PERIOD = 251 };

static char folder[384];
static pid_t owner;
static struct {
    unsigned char *bytes[256];
    size_t len;
} buffers;

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

static void clean_up(void) {
    /* A child of a test leaves the folder to its parent. */
    if (getpid() != owner)
        return;
    nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    for (size_t i = 0; i < buffers.len; i++)
        free(buffers.bytes[i]);
}

const char *fixture_path(const char *name) {
    static char paths[32][512];
    static unsigned next;
    if (!folder[0]) {
        const char *parent = test_setting("TMPDIR");
        CHECK(snprintf(folder, sizeof(folder), "%s/st_test.XXXXXX", parent ? parent : "/tmp") < (int)sizeof(folder));
        CHECK(mkdtemp(folder));
        /* Some cases give up root's rights. */
        CHECK(chmod(folder, 0755) == 0);
        owner = getpid();
        atexit(clean_up);
    }
    char *path = paths[next++ % LEN(paths)];
    CHECK(snprintf(path, sizeof(paths[0]), "%s/%s", folder, name) < (int)sizeof(paths[0]));
    return path;
}

unsigned char fixture_byte(size_t i) {
    return (unsigned char)(i % PERIOD);
}

/* At most a period from byte i on: bytes are compared and made by the row, which valgrind is grateful for. */
static size_t row(size_t i, size_t len, const unsigned char **bytes) {
    static unsigned char period[PERIOD];
    for (size_t k = 0; period[PERIOD - 1] == 0 && k < PERIOD; k++)
        period[k] = fixture_byte(k);
    *bytes = period + i % PERIOD;
    const size_t rest = PERIOD - i % PERIOD;
    return len < rest ? len : rest;
}

int fixture_is(const void *bytes, size_t i, size_t len) {
    const unsigned char *at = bytes, *expected;
    for (size_t done = 0, n; done < len; done += n) {
        n = row(i + done, len - done, &expected);
        if (memcmp(at + done, expected, n) != 0)
            return 0;
    }
    return 1;
}

static void fill(unsigned char *bytes, size_t i, size_t len) {
    const unsigned char *from;
    for (size_t done = 0, n; done < len; done += n) {
        n = row(i + done, len - done, &from);
        memcpy(bytes + done, from, n);
    }
}

/* A header of JSON with spaces at the end, as many as the shift needs. */
static char *header_of(const fixture *fixture, size_t *len) {
    char *text;
    FILE *header = open_memstream(&text, len);
    CHECK(header);
    fprintf(header, "{");
    if (fixture->metadata)
        fprintf(header, "\"__metadata__\":%s%s", fixture->metadata, fixture->len ? "," : "");
    size_t at = 0;
    for (size_t i = 0; i < fixture->len; i++) {
        const fixture_tensor *tensor = &fixture->tensors[i];
        fprintf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", i ? "," : "", tensor->name,
                tensor->dtype ? tensor->dtype : "F32", tensor->shape, at, at + tensor->nbytes);
        at += tensor->nbytes;
    }
    fprintf(header, "}");
    while ((8 + (size_t)ftell(header)) % 64 != fixture->shift)
        fputc(' ', header);
    CHECK(fclose(header) == 0);
    return text;
}

unsigned char *fixture_bytes(const fixture *fixture, size_t *len) {
    size_t header_len, data_len = 0;
    char *header = header_of(fixture, &header_len);
    for (size_t i = 0; i < fixture->len; i++)
        data_len += fixture->tensors[i].nbytes;
    *len = 8 + header_len + data_len;
    unsigned char *bytes = malloc(*len);
    CHECK(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)header_len >> (8 * i));
    memcpy(bytes + 8, header, header_len);
    free(header);
    unsigned char *data = bytes + 8 + header_len;
    for (size_t i = 0, at = 0; i < fixture->len; at += fixture->tensors[i].nbytes, i++) {
        if (fixture->tensors[i].data)
            memcpy(data + at, fixture->tensors[i].data, fixture->tensors[i].nbytes);
        else
            fill(data + at, at, fixture->tensors[i].nbytes);
    }
    return bytes;
}

void fixture_write_bytes(const char *path, const void *bytes, size_t len) {
    FILE *file = fopen(path, "wb");
    CHECK(file);
    CHECK(fwrite(bytes, 1, len, file) == len);
    CHECK(fclose(file) == 0);
}

static void write_fixture(const char *path, const fixture *fixture) {
    size_t len;
    unsigned char *bytes = fixture_bytes(fixture, &len);
    fixture_write_bytes(path, bytes, len);
    free(bytes);
}

const char *fixture_write(const char *name, const fixture *fixture) {
    const char *path = fixture_path(name);
    write_fixture(path, fixture);
    return path;
}

const char *fixture_path_in(const char *folder, const char *name) {
    char path[256];
    CHECK(snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path));
    return fixture_path(path);
}

const char *fixture_write_sharded(const char *folder, int with_index) {
    static unsigned char run[SHARDED_SIZE];
    fill(run, 0, sizeof(run));
    const fixture_part *part = fixture_sharded;
    const fixture_tensor first[] = {{"embed", "F32", "[64,64]", part[0].nbytes, run + part[0].at},
                                    {"norm", "BF16", "[5]", part[1].nbytes, run + part[1].at}};
    /* After one byte the next tensor is not aligned. */
    const fixture_tensor second[] = {{"one", "U8", "[1]", part[2].nbytes, run + part[2].at},
                                     {"three", "I32", "[3]", part[3].nbytes, run + part[3].at}};
    const fixture_tensor third[] = {{"head", "F64", "[32,32]", part[4].nbytes, run + part[4].at}};
    const fixture shards[SHARDS] = {{first, 2, "{\"format\":\"pt\",\"part\":\"1\"}", 0},
                                    {second, 2, "{\"part\":\"2\",\"format\":\"pt\"}", 0},
                                    {third, 1, "{\"last\":\"yes\",\"part\":\"3\"}", 0}};
    const char *path = fixture_path(folder);
    CHECK(mkdir(path, 0755) == 0 || errno == EEXIST);
    for (size_t i = 0; i < SHARDS; i++)
        write_fixture(fixture_path_in(folder, fixture_shards[i]), &shards[i]);
    if (!with_index)
        return path;
    FILE *index = fopen(fixture_path_in(folder, fixture_index), "w");
    CHECK(index);
    fprintf(index, "{\"metadata\":{\"total_size\":%d},\"weight_map\":{", SHARDED_SIZE);
    for (size_t i = 0; i < SHARDED_LEN; i++)
        fprintf(index, "%s\"%s\":\"%s\"", i ? "," : "", part[i].name, fixture_shards[part[i].shard]);
    fprintf(index, "}}");
    CHECK(fclose(index) == 0);
    return path;
}

st_checkpoint *fixture_open_path(const char *path, int32_t storage, uint32_t flags) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    options.flags = flags;
    st_checkpoint *checkpoint;
    OK(st_open(path, &options, &checkpoint, &err));
    return checkpoint;
}

st_checkpoint *fixture_open(const fixture *fixture, int32_t storage, uint32_t flags) {
    if (storage != ST_STORAGE_MEMORY) {
        const char *path = fixture_write("fixture.safetensors", fixture);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, flags);
        /* What is open stays as it is when the next fixture takes the name. */
        CHECK(remove(path) == 0);
        return checkpoint;
    }
    fixture_path("");
    CHECK(buffers.len < LEN(buffers.bytes));
    size_t len;
    unsigned char *bytes = fixture_bytes(fixture, &len);
    buffers.bytes[buffers.len++] = bytes;
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    options.flags = flags;
    st_checkpoint *checkpoint;
    OK(st_open_buffer(bytes, len, &options, &checkpoint, &err));
    return checkpoint;
}
