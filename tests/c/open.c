#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void refuses(st_status status, const char *path) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
        FAILS(status, st_open(path, &options, &checkpoint, &err));
        CHECK(checkpoint == NULL);
    }
}

static void refuses_with(int os_error, const char *path) {
    refuses(ST_ERR_IO, path);
    CHECK(err.os_error == os_error);
}

static void opens(const char *path) {
    st_checkpoint *checkpoint;
    OK(st_open(path, NULL, &checkpoint, &err));
    CHECK(st_len(checkpoint) == SAMPLE_LEN);
    CHECK(strcmp(st_shard_path(checkpoint, 0), path) == 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    st_close(checkpoint);
}

static void real_model(void) {
    const char *path = test_setting("ST_TEST_MODEL");
    if (!path)
        SKIP("ST_MODEL is not set");
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        st_checkpoint *model;
        OK(st_open(path, &options, &model, &err));
        st_info info;
        CHECK(st_checkpoint_info(model, &info) == ST_OK);
        CHECK(st_len(model) > 0 && 8 + info.header_bytes + info.tensor_bytes == info.file_bytes);
        uint64_t nbytes = 0;
        for (size_t i = 0; i < st_len(model); i++) {
            st_tensor tensor;
            size_t index;
            const void *data;
            OK(st_tensor_info(model, i, &tensor, &err));
            CHECK(st_find(model, tensor.name, &index) == ST_OK && index == i);
            OK(st_tensor_ptr(model, i, &data, NULL, &err));
            unsigned char *read = malloc(tensor.nbytes);
            CHECK(read || tensor.nbytes == 0);
            OK(st_tensor_read(model, i, NULL, 0, read, tensor.nbytes, &err));
            CHECK(tensor.nbytes == 0 || memcmp(read, data, tensor.nbytes) == 0);
            free(read);
            nbytes += tensor.nbytes;
        }
        CHECK(nbytes == info.tensor_bytes);
        st_close(model);
    }
}

static void file_without_tensors(void) {
    const fixture none = {NULL, 0, NULL, 0};
    for (size_t i = 0; i < LEN(fixture_storages); i++) {
        st_checkpoint *checkpoint = fixture_open(&none, fixture_storages[i], 0);
        size_t len = 1;
        const size_t *indices;
        CHECK(st_len(checkpoint) == 0);
        CHECK(st_keys(checkpoint, &len) && len == 0);
        CHECK(st_find_prefix(checkpoint, "", &indices, &len) == ST_OK && len == 0);
        const void *data;
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
        st_close(checkpoint);
    }
}

static void file_larger_than_32_bits(void) {
    /* Sparse: 6 GiB that take no room on the disk. */
    const uint64_t len = 6ull << 30;
    char header[256];
    int n = snprintf(header, sizeof(header), "{\"t\":{\"dtype\":\"U8\",\"shape\":[%llu],\"data_offsets\":[0,%llu]}}",
                     (unsigned long long)len, (unsigned long long)len);
    unsigned char prefix[8] = {(unsigned char)n};
    const char *path = fixture_path("huge.safetensors");
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, prefix, 8) == 8 && write(fd, header, (size_t)n) == n);
    if (ftruncate(fd, (off_t)(8 + (uint64_t)n + len)) != 0)
        SKIP("no file of 6 GiB here");
    CHECK(pwrite(fd, "last", 4, (off_t)(8 + (uint64_t)n + len - 4)) == 4);
    close(fd);
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        st_checkpoint *checkpoint;
        OK(st_open(path, &options, &checkpoint, &err));
        const st_range range = {len - 4, ST_END};
        char read[4];
        OK(st_tensor_read(checkpoint, 0, &range, 1, read, 4, &err));
        CHECK(memcmp(read, "last", 4) == 0);
        if (storage == ST_STORAGE_MMAP) {
            st_view view;
            OK(st_tensor_view(checkpoint, 0, &range, 1, &view, &err));
            CHECK(memcmp(view.data, "last", 4) == 0 && view.nbytes == 4);
        }
        st_close(checkpoint);
    }
    CHECK(unlink(path) == 0);
}

static void missing_file(void) {
    refuses_with(ENOENT, fixture_path("missing.safetensors"));
    SAYS("missing.safetensors");
    refuses_with(ENOENT, fixture_path("missing/model.safetensors"));
    refuses_with(ENOENT, "");
}

static void file_as_folder(void) {
    fixture_write("sample.safetensors", &fixture_sample);
    refuses_with(ENOTDIR, fixture_path("sample.safetensors/part"));
}

static void empty_folder(void) {
    CHECK(mkdir(fixture_path("empty"), 0755) == 0);
    refuses(ST_ERR_FOLDER_EMPTY, fixture_path("empty"));
    SAYS("no .safetensors file");
    refuses(ST_ERR_FOLDER_EMPTY, "/");
}

static void fifo_does_not_hang(void) {
    const char *path = fixture_path("fifo");
    CHECK(mkfifo(path, 0600) == 0);
    alarm(600);
    refuses(ST_ERR_NOT_A_FILE, path);
    alarm(0);
    SAYS("FIFO");
}

static void device(void) {
    refuses(ST_ERR_NOT_A_FILE, "/dev/null");
    SAYS("device");
    refuses(ST_ERR_NOT_A_FILE, "/dev/zero");
}

static void socket_file(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = fixture_path("socket");
    if (strlen(path) >= sizeof(address.sun_path))
        SKIP("the temporary folder's path is too long for a socket");
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0);
    refuses(ST_ERR_NOT_A_FILE, path);
    SAYS("socket");
    close(fd);
}

static void kernel_file_without_size(void) {
    /* A regular file, says the kernel, of 0 bytes, that cannot be mapped. */
    if (access("/proc/version", R_OK) != 0)
        SKIP("there is no /proc/version");
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_HEADER_TOO_SMALL, st_open("/proc/version", NULL, &checkpoint, &err));
}

static void open_unreadable(void) {
    test_become_nobody();
    refuses_with(EACCES, fixture_path("unreadable.safetensors"));
    refuses_with(EACCES, fixture_path("closed/sample.safetensors"));
}

static void unreadable_file_or_folder(void) {
    CHECK(chmod(fixture_write("unreadable.safetensors", &fixture_sample), 0) == 0);
    CHECK(mkdir(fixture_path("closed"), 0) == 0);
    CHECK(test_in_child(open_unreadable) == 0);
}

static void empty_and_tiny_files(void) {
    for (size_t len = 0; len <= 8; len++) {
        const char *path = fixture_path("tiny");
        fixture_write_bytes(path, "\x02\0\0\0\0\0\0\0", len);
        refuses(len < 8 ? ST_ERR_HEADER_TOO_SMALL : ST_ERR_HEADER_LENGTH, path);
    }
}

static void file_cut_at_every_byte(void) {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    const size_t data = len - SAMPLE_DATA_SIZE;
    for (size_t cut = 0; cut < len; cut++) {
        st_checkpoint *checkpoint;
        st_status status = cut < 8 ? ST_ERR_HEADER_TOO_SMALL : cut < data ? ST_ERR_HEADER_LENGTH : ST_ERR_TRUNCATED;
        /* A copy of its own size, so that valgrind and sanitizers see reads past the end. */
        unsigned char *copy = malloc(cut ? cut : 1);
        CHECK(copy);
        memcpy(copy, bytes, cut);
        FAILS(status, st_open_buffer(copy, cut, NULL, &checkpoint, &err));
        free(copy);
    }
    bytes = realloc(bytes, len + 1);
    CHECK(bytes);
    bytes[len] = 0;
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_TRAILING_BYTES, st_open_buffer(bytes, len + 1, NULL, &checkpoint, &err));
    OK(st_open_buffer(bytes, len, NULL, &checkpoint, &err));
    st_close(checkpoint);
    free(bytes);
}

static void path_of_odd_bytes(void) {
    static const char *const names[] = {"two\nlines", "\xff\xfe", "spaces and 'quotes\"", "\xe6\x9d\x83\xe9\x87\x8d.safetensors", "%s%n"};
    for (size_t i = 0; i < LEN(names); i++)
        opens(fixture_write(names[i], &fixture_sample));
}

static void path_too_long(void) {
    char path[8192];
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[300] = 0;
    refuses_with(ENAMETOOLONG, path);
    path[300] = 'x';
    for (size_t i = 0; i < sizeof(path); i += 100)
        path[i] = '/';
    path[sizeof(path) - 1] = 0;
    refuses_with(ENAMETOOLONG, path);
}

static void path_relative(void) {
    fixture_write("sample.safetensors", &fixture_sample);
    CHECK(chdir(fixture_path("")) == 0);
    opens("sample.safetensors");
    opens("./sample.safetensors");
    CHECK(chdir("/") == 0);
}

static void symlinks(void) {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    CHECK(symlink(path, fixture_path("link")) == 0);
    opens(fixture_path("link"));
    CHECK(symlink("nowhere", fixture_path("dangling")) == 0);
    refuses_with(ENOENT, fixture_path("dangling"));
    CHECK(symlink("loop", fixture_path("loop")) == 0);
    refuses_with(ELOOP, fixture_path("loop"));
}

static void open_needs_its_pointers(void) {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open(NULL, NULL, &checkpoint, &err));
    CHECK(checkpoint == NULL);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open(path, NULL, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open(NULL, NULL, NULL, &err));
    CHECK(st_open(NULL, NULL, NULL, NULL) == ST_ERR_INVALID_ARGUMENT);
}

static void open_buffer_points_into_it(void) {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    st_checkpoint *checkpoint;
    OK(st_open_buffer(bytes, len, NULL, &checkpoint, &err));
    const void *data;
    size_t nbytes;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, &nbytes, &err));
    /* Where it lies, not a copy. */
    CHECK(data == bytes + len - SAMPLE_DATA_SIZE && nbytes == SAMPLE_WEIGHT_SIZE);
    CHECK(strcmp(st_shard_path(checkpoint, 0), "") == 0);
    st_close(checkpoint);
    free(bytes);
}

static void open_buffer_at_every_address(void) {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len), *room = malloc(len + 16);
    CHECK(room);
    for (size_t shift = 0; shift < 16; shift++) {
        memcpy(room + shift, bytes, len);
        st_checkpoint *checkpoint;
        OK(st_open_buffer(room + shift, len, NULL, &checkpoint, &err));
        const void *data;
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK((uintptr_t)data % 4 == 0 && fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        OK(st_tensor_ptr(checkpoint, SAMPLE_SCALAR, &data, NULL, &err));
        CHECK((uintptr_t)data % 8 == 0 && fixture_is(data, SAMPLE_SCALAR_AT, 8));
        st_close(checkpoint);
    }
    free(room);
    free(bytes);
}

static void open_buffer_copies_the_header(void) {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    st_checkpoint *checkpoint;
    OK(st_open_buffer(bytes, len, NULL, &checkpoint, &err));
    memset(bytes, 0, len - SAMPLE_DATA_SIZE);
    size_t index;
    CHECK(st_find(checkpoint, "odd", &index) == ST_OK && index == SAMPLE_ODD);
    CHECK(strcmp(st_metadata_get(checkpoint, "format"), "pt") == 0);
    st_close(checkpoint);
    free(bytes);
}

static void open_buffer_of_null_nothing_and_garbage(void) {
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    FAILS(ST_ERR_HEADER_TOO_SMALL, st_open_buffer(NULL, 0, NULL, &checkpoint, &err));
    CHECK(checkpoint == NULL);
    FAILS(ST_ERR_HEADER_TOO_SMALL, st_open_buffer("", 0, NULL, &checkpoint, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open_buffer(NULL, 100, NULL, &checkpoint, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open_buffer("x", SIZE_MAX, NULL, &checkpoint, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_open_buffer("x", 1, NULL, NULL, &err));
    FAILS(ST_ERR_HEADER_LENGTH, st_open_buffer("\x09\0\0\0\0\0\0\0{}", 10, NULL, &checkpoint, &err));
    FAILS(ST_ERR_HEADER_JSON, st_open_buffer("\x02\0\0\0\0\0\0\0}{", 10, NULL, &checkpoint, &err));
    FAILS(ST_ERR_HEADER_UTF8, st_open_buffer("\x02\0\0\0\0\0\0\0\xff{", 10, NULL, &checkpoint, &err));
    unsigned char garbage[256];
    for (size_t i = 0; i < sizeof(garbage); i++)
        garbage[i] = (unsigned char)(i * 73 + 11);
    FAILS(ST_ERR_HEADER_TOO_LARGE, st_open_buffer(garbage, sizeof(garbage), NULL, &checkpoint, &err));
}

static void retain_of_null_is_null(void) {
    CHECK(st_retain(NULL) == NULL);
}

static void retain_counts(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    for (int i = 0; i < 100; i++)
        CHECK(st_retain(checkpoint) == checkpoint);
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    for (int i = 0; i < 100; i++)
        st_close(checkpoint);
    CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    CHECK(st_len(checkpoint) == SAMPLE_LEN);
    st_close(checkpoint);
}

/* Whether this process has a mapping of the file. */
static bool is_mapped(const char *path) {
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    char line[4096 + 256];
    bool found = false;
    while (fgets(line, sizeof(line), maps))
        found = found || strstr(line, path);
    fclose(maps);
    return found;
}

static void close_with_the_last_reference_gives_everything_back(void) {
    const char *path = fixture_write("closed.safetensors", &fixture_sample);
    st_close(NULL);
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        const size_t index = SAMPLE_WEIGHT;
        OK(st_prefetch(checkpoint, &index, 1, &err));
        CHECK(is_mapped(path) == (storage == ST_STORAGE_MMAP));
        CHECK(st_retain(checkpoint) == checkpoint);
        st_close(checkpoint);
        CHECK(is_mapped(path) == (storage == ST_STORAGE_MMAP));
        const void *data;
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        st_close(checkpoint);
        CHECK(!is_mapped(path));
        CHECK(test_entries("/proc/self/fd") == descriptors);
        test_threads_end(threads);
    }
}

static const test_case cases[] = {
    CASE(real_model),
    CASE(file_without_tensors),
    CASE(file_larger_than_32_bits),
    CASE(missing_file),
    CASE(file_as_folder),
    CASE(empty_folder),
    CASE(fifo_does_not_hang),
    CASE(device),
    CASE(socket_file),
    CASE(kernel_file_without_size),
    CASE(unreadable_file_or_folder),
    CASE(empty_and_tiny_files),
    CASE(file_cut_at_every_byte),
    CASE(path_of_odd_bytes),
    CASE(path_too_long),
    CASE(path_relative),
    CASE(symlinks),
    CASE(open_needs_its_pointers),
    CASE(open_buffer_points_into_it),
    CASE(open_buffer_at_every_address),
    CASE(open_buffer_copies_the_header),
    CASE(open_buffer_of_null_nothing_and_garbage),
    CASE(retain_of_null_is_null),
    CASE(retain_counts),
    CASE(close_with_the_last_reference_gives_everything_back),
};

TEST_MAIN(cases)
