#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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

size_t fixture_shift(const fixture_generation *generation, size_t tensor) {
    return (generation->number * 97 + tensor * 7) % PERIOD;
}

const unsigned char *fixture_run(size_t i, size_t len) {
    static const unsigned char *run;
    static size_t run_len;
    if (!run || run_len < i + len) {
        fixture_path("");
        CHECK(buffers.len < LEN(buffers.bytes));
        run_len = i + len + PERIOD;
        unsigned char *longer = malloc(run_len);
        CHECK(longer);
        fill(longer, 0, run_len);
        /* The shorter one may be in use. */
        buffers.bytes[buffers.len++] = longer;
        run = longer;
    }
    return run + i;
}

static const char tensor_name[] = "t%zu";

st_status fixture_go_on(fixture_writing *writing, st_error *error) {
    const fixture_generation *generation = writing->generation;
    const uint64_t shape[] = {generation->nbytes};
    const size_t nbytes = generation->nbytes, half = nbytes / 2;
    st_status status = ST_OK;
    char name[32];
    if (!writing->writer) {
        st_writer_options options = ST_WRITER_OPTIONS_INIT;
        options.flags = generation->flags;
        options.max_shard_bytes = generation->shards ? nbytes * (generation->tensors / generation->shards) : 0;
        options.task = writing->task;
        status = st_writer_open(writing->path, &options, &writing->writer, error);
    }
    if (status == ST_OK && !writing->has_metadata) {
        snprintf(name, sizeof(name), "%u", generation->number);
        status = st_writer_metadata(writing->writer, "generation", name, error);
        writing->has_metadata = status == ST_OK;
    }
    for (size_t i; status == ST_OK && (i = writing->added) < generation->tensors; writing->added += status == ST_OK) {
        const unsigned char *data = fixture_run(fixture_shift(generation, i), nbytes);
        snprintf(name, sizeof(name), tensor_name, i);
        status = generation->streamed
                     ? st_writer_declare(writing->writer, name, ST_DTYPE_U8, shape, 1, error)
                     : st_writer_add(writing->writer, name, ST_DTYPE_U8, shape, 1, data, nbytes, error);
    }
    const size_t pieces = generation->streamed ? 2 * generation->tensors : 0;
    for (; status == ST_OK && writing->pieces < pieces; writing->pieces += status == ST_OK) {
        const bool in_turns = generation->streamed == 1;
        const size_t i = in_turns ? writing->pieces % generation->tensors : writing->pieces / 2;
        const unsigned char *data = fixture_run(fixture_shift(generation, i), nbytes);
        const bool first = in_turns ? writing->pieces < generation->tensors : writing->pieces % 2 == 0;
        snprintf(name, sizeof(name), tensor_name, i);
        status = st_writer_write(writing->writer, name, first ? data : data + half, first ? half : nbytes - half, error);
    }
    if (status == ST_OK) {
        status = st_writer_finish(writing->writer, error);
        if (status == ST_OK)
            writing->writer = NULL;
    }
    return status;
}

void fixture_put(const char *path, const fixture_generation *generation) {
    fixture_writing writing = {generation, path, NULL, NULL, 0, 0, 0};
    OK(fixture_go_on(&writing, &err));
}

void fixture_put_quickly(const char *path, const fixture_generation *generation) {
    fixture_generation quick = *generation;
    quick.flags |= ST_WRITE_NO_SYNC;
    fixture_put(path, &quick);
}

/* Calls a function for the name of each file of a generation; and gives how many there are. */
static size_t each_file(const char *path, const fixture_generation *generation, void (*call)(const char *, void *), void *with) {
    static const char end[] = ".safetensors";
    char name[512];
    const size_t len = strlen(path), stem = len - (sizeof(end) - 1);
    CHECK(len > sizeof(end) && strcmp(path + stem, end) == 0);
    if (generation->shards <= 1) {
        call(path, with);
        return 1;
    }
    for (size_t i = 1; i <= generation->shards; i++) {
        CHECK(snprintf(name, sizeof(name), "%.*s-%05zu-of-%05zu%s", (int)stem, path, i, generation->shards, end) <
              (int)sizeof(name));
        call(name, with);
    }
    CHECK(snprintf(name, sizeof(name), "%s.index.json", path) < (int)sizeof(name));
    call(name, with);
    return generation->shards + 1;
}

static const char *index_of(const char *path) {
    static char index[512];
    CHECK(snprintf(index, sizeof(index), "%s.index.json", path) < (int)sizeof(index));
    return access(index, F_OK) == 0 ? index : NULL;
}

const fixture_generation *fixture_found(const char *path, const fixture_generation *generations, size_t len) {
    const char *index = index_of(path);
    return fixture_found_at(index ? index : path, generations, len);
}

const fixture_generation *fixture_found_at(const char *path, const fixture_generation *generations, size_t len) {
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    const char *number = st_metadata_get(checkpoint, "generation");
    CHECK(number);
    const fixture_generation *found = NULL;
    for (size_t i = 0; i < len; i++)
        if (strtoul(number, NULL, 10) == generations[i].number)
            found = &generations[i];
    CHECK(found);
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK && info.metadata_conflicts == 0);
    CHECK(st_len(checkpoint) == found->tensors && st_shard_len(checkpoint) == (found->shards ? found->shards : 1));
    for (size_t i = 0; i < found->tensors; i++) {
        char name[32];
        size_t tensor, nbytes;
        const void *data;
        snprintf(name, sizeof(name), tensor_name, i);
        CHECK(st_find(checkpoint, name, &tensor) == ST_OK);
        OK(st_tensor_ptr(checkpoint, tensor, &data, &nbytes, &err));
        CHECK(nbytes == found->nbytes && fixture_is(data, fixture_shift(found, i), nbytes));
    }
    if (found->flags & (ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3))
        OK(st_verify(checkpoint, NULL, NULL, &err));
    st_close(checkpoint);
    return found;
}

typedef struct expected_files {
    const char *names[64];
    size_t len;
} expected_files;

static void expect_file(const char *path, void *files) {
    expected_files *expected = files;
    CHECK(expected->len < LEN(expected->names));
    expected->names[expected->len] = strdup(strrchr(path, '/') + 1);
    CHECK(expected->names[expected->len++]);
}

/* The folder of a path, as long as no other is asked for. */
static const char *folder_of(const char *path) {
    static char of[512];
    CHECK(snprintf(of, sizeof(of), "%.*s", (int)(strrchr(path, '/') - path), path) < (int)sizeof(of));
    return of;
}

void fixture_empty(const char *path) {
    DIR *dir = opendir(folder_of(path));
    CHECK(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        CHECK(entry->d_type == DT_DIR || unlinkat(dirfd(dir), entry->d_name, 0) == 0);
    closedir(dir);
}

void fixture_only(const char *path, const fixture_generation *generation) {
    expected_files expected = {{NULL}, 0};
    each_file(path, generation, expect_file, &expected);
    DIR *dir = opendir(folder_of(path));
    CHECK(dir);
    size_t found = 0, others = 0;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        bool is_expected = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        for (size_t i = 0; i < expected.len; i++)
            if (strcmp(entry->d_name, expected.names[i]) == 0) {
                is_expected = true;
                found++;
            }
        if (!is_expected) {
            fprintf(stderr, "litter: %s\n", entry->d_name);
            others++;
        }
    }
    closedir(dir);
    CHECK(others == 0 && found == expected.len);
    for (size_t i = 0; i < expected.len; i++)
        free((char *)expected.names[i]);
}

typedef struct comparison {
    const char *other;
    int same;
} comparison;

static void compare_file(const char *path, void *with) {
    comparison *compared = with;
    const char *name = strrchr(path, '/');
    char other[512];
    CHECK(snprintf(other, sizeof(other), "%s%s", folder_of(compared->other), name) < (int)sizeof(other));
    size_t len, other_len;
    unsigned char *bytes = fixture_slurp(path, &len), *other_bytes = fixture_slurp(other, &other_len);
    compared->same = compared->same && len == other_len && memcmp(bytes, other_bytes, len) == 0;
    free(bytes);
    free(other_bytes);
}

int fixture_same(const char *path, const char *other, const fixture_generation *generation) {
    comparison compared = {other, 1};
    each_file(path, generation, compare_file, &compared);
    return compared.same;
}

unsigned char *fixture_slurp(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    const long end = ftell(file);
    CHECK(end >= 0 && fseek(file, 0, SEEK_SET) == 0);
    unsigned char *bytes = malloc((size_t)end + 1);
    CHECK(bytes && fread(bytes, 1, (size_t)end, file) == (size_t)end);
    fclose(file);
    *len = (size_t)end;
    return bytes;
}

void fixture_flip(const char *path, uint64_t offset) {
    unsigned char byte;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && pread(fd, &byte, 1, (off_t)offset) == 1);
    byte ^= 1;
    CHECK(pwrite(fd, &byte, 1, (off_t)offset) == 1 && close(fd) == 0);
}

const char *fixture_model_in(const char *name) {
    CHECK(mkdir(fixture_path(name), 0755) == 0 || errno == EEXIST);
    return fixture_path_in(name, "model.safetensors");
}
