/* Checkpoints of several files, as a C program opens them. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* As fixture_write_sharded, with a path that stays until the next call. */
static const char *write_sharded(const char *name, int with_index) {
    static char folder[512];
    CHECK(snprintf(folder, sizeof(folder), "%s", fixture_write_sharded(name, with_index)) < (int)sizeof(folder));
    return folder;
}

static void tensor_is_right(st_checkpoint *checkpoint, size_t index) {
    const fixture_part *part = &fixture_sharded[index];
    const void *data;
    size_t nbytes;
    static _Thread_local unsigned char read[16384];
    OK(st_tensor_ptr(checkpoint, index, &data, &nbytes, &err));
    CHECK(nbytes == part->nbytes && fixture_is(data, part->at, nbytes));
    OK(st_tensor_read(checkpoint, index, NULL, 0, read, sizeof(read), &err));
    CHECK(fixture_is(read, part->at, part->nbytes));
}

static void names_are_right(st_checkpoint *checkpoint) {
    size_t len, index;
    const char *const *keys = st_keys(checkpoint, &len);
    CHECK(keys && len == SHARDED_LEN && st_len(checkpoint) == SHARDED_LEN);
    for (size_t i = 0; i < SHARDED_LEN; i++) {
        st_tensor tensor;
        OK(st_tensor_info(checkpoint, i, &tensor, &err));
        CHECK(strcmp(tensor.name, fixture_sharded[i].name) == 0 && keys[i] == tensor.name);
        CHECK(tensor.shard == fixture_sharded[i].shard && tensor.nbytes == fixture_sharded[i].nbytes);
        CHECK(st_find(checkpoint, tensor.name, &index) == ST_OK && index == i);
        CHECK(tensor.file_offset % tensor.alignment == 0);
    }
    CHECK(st_find(checkpoint, "none", &index) == ST_ERR_NOT_FOUND);
    const size_t *indices;
    CHECK(st_find_prefix(checkpoint, "", &indices, &len) == ST_OK && len == SHARDED_LEN);
    const size_t in_byte_order[] = {SHARDED_EMBED, SHARDED_HEAD, SHARDED_NORM, SHARDED_ONE, SHARDED_THREE};
    CHECK(memcmp(indices, in_byte_order, sizeof(in_byte_order)) == 0);
}

static void metadata_is_merged(const st_checkpoint *checkpoint) {
    static const char *const keys[] = {"format", "part", "last"}, *const values[] = {"pt", "1", "yes"};
    CHECK(st_metadata_len(checkpoint) == LEN(keys));
    for (size_t i = 0; i < LEN(keys); i++) {
        const char *key, *value;
        CHECK(st_metadata_at(checkpoint, i, &key, &value) == ST_OK);
        CHECK(strcmp(key, keys[i]) == 0 && strcmp(value, values[i]) == 0);
        CHECK(st_metadata_get(checkpoint, key) == value);
    }
    CHECK(st_metadata_at(checkpoint, LEN(keys), NULL, NULL) == ST_ERR_OUT_OF_RANGE);
    /* What an index has of its own is not shown. */
    CHECK(!st_metadata_get(checkpoint, "total_size"));
}

/* The shards are called `start`, and then as the fixture's. */
static void shards_are_right(const st_checkpoint *checkpoint, const char *start) {
    char path[512];
    uint64_t file_bytes = 0, tensor_bytes = 0;
    CHECK(st_shard_len(checkpoint) == SHARDS && !st_shard_path(checkpoint, SHARDS));
    for (size_t i = 0; i < SHARDS; i++) {
        struct stat stat;
        CHECK(snprintf(path, sizeof(path), "%s%s", start, fixture_shards[i]) < (int)sizeof(path));
        CHECK(strcmp(st_shard_path(checkpoint, i), path) == 0);
        CHECK(lstat(path, &stat) == 0);
        file_bytes += (uint64_t)stat.st_size;
    }
    for (size_t i = 0; i < SHARDED_LEN; i++)
        tensor_bytes += fixture_sharded[i].nbytes;
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
    CHECK(info.file_bytes == file_bytes && info.tensor_bytes == tensor_bytes);
    CHECK(info.header_bytes == file_bytes - tensor_bytes - 8 * SHARDS);
    CHECK(info.metadata_conflicts == SHARDED_CONFLICTS);
}

static void is_whole(st_checkpoint *checkpoint, const char *start) {
    names_are_right(checkpoint);
    metadata_is_merged(checkpoint);
    shards_are_right(checkpoint, start);
    for (size_t i = 0; i < SHARDED_LEN; i++)
        tensor_is_right(checkpoint, i);
}

static void opens(const char *path, const char *start) {
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    is_whole(checkpoint, start);
    st_close(checkpoint);
}

static const char *with(const char *path, const char *end) {
    static char paths[4][512];
    static unsigned next;
    char *joined = paths[next++ % 4];
    CHECK(snprintf(joined, sizeof(paths[0]), "%s%s", path, end) < (int)sizeof(paths[0]));
    return joined;
}

static void folder_and_index(void) {
    const char *folder = write_sharded("indexed", 1);
    opens(folder, with(folder, "/"));
    opens(with(folder, "/"), with(folder, "/"));
    opens(with(folder, "//"), with(folder, "//"));
    opens(with(folder, "/."), with(folder, "/./"));
    opens(fixture_path_in("indexed", fixture_index), with(folder, "/"));
    opens(fixture_path_in("indexed/../indexed", fixture_index), with(folder, "/../indexed/"));
}

static void folder_of_numbered_shards(void) {
    const char *folder = write_sharded("numbered", 0);
    opens(folder, with(folder, "/"));
    opens(with(folder, "/"), with(folder, "/"));
}

static void folder_of_one_file(void) {
    const char *folder = fixture_path("single");
    CHECK(mkdir(folder, 0755) == 0);
    const char *file = fixture_write("single/anything.safetensors", &fixture_sample);
    st_checkpoint *checkpoint = fixture_open_path(folder, ST_STORAGE_AUTO, 0);
    CHECK(st_len(checkpoint) == SAMPLE_LEN && st_shard_len(checkpoint) == 1);
    CHECK(strcmp(st_shard_path(checkpoint, 0), file) == 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    st_close(checkpoint);
}

static void open_from_within(void) {
    CHECK(chdir(fixture_path("within")) == 0);
    opens(fixture_index, "");
    opens(with("./", fixture_index), "./");
    opens(with("../within/", fixture_index), "../within/");
    opens(".", "./");
    opens("./", "./");
    opens("../within", "../within/");
    opens("../within/", "../within/");
    CHECK(unlink(fixture_index) == 0);
    opens(".", "./");
    CHECK(chdir("..") == 0);
    opens("within", "within/");
}

static void relative_paths(void) {
    write_sharded("within", 1);
    CHECK(test_in_child(open_from_within) == 0);
}

static void open_where_the_way_is_barred(void) {
    CHECK(chdir(fixture_path("barred/model")) == 0);
    CHECK(chmod(fixture_path("barred"), 0) == 0);
    test_become_nobody();
    struct stat stat;
    st_checkpoint *checkpoint;
    CHECK(lstat(fixture_path("barred/model"), &stat) != 0);
    OK(st_open(fixture_shards[0], NULL, &checkpoint, &err));
    st_close(checkpoint);
    opens(fixture_index, "");
    opens(".", "./");
}

/* A service that has changed into its folder and then given up its rights. */
static void folder_that_the_root_does_not_lead_to(void) {
    CHECK(mkdir(fixture_path("barred"), 0755) == 0);
    write_sharded("barred/model", 1);
    int status = test_in_child(open_where_the_way_is_barred);
    CHECK(chmod(fixture_path("barred"), 0755) == 0);
    CHECK(status == 0);
}

static void each_storage_and_flag(void) {
    const char *folder = write_sharded("flags", 1);
    for (uint32_t flags = 0; flags < 2 * ST_OPEN_FOLLOW_LINKS; flags++)
        for (size_t s = 0; s < LEN(fixture_storages); s++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.storage = fixture_storages[s];
            options.flags = flags;
            st_checkpoint *checkpoint;
            if (options.storage == ST_STORAGE_MEMORY || (options.storage == ST_STORAGE_READ && (flags & ST_OPEN_LOCK))) {
                FAILS(ST_ERR_UNSUPPORTED, st_open(folder, &options, &checkpoint, &err));
                CHECK(!checkpoint);
                continue;
            }
            const st_status status = st_open(folder, &options, &checkpoint, &err);
            if ((flags & ST_OPEN_LOCK) && (status == ST_ERR_IO || status == ST_ERR_NO_MEMORY))
                continue; /* RLIMIT_MEMLOCK */
            CHECK(status == ST_OK);
            st_info info;
            CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
            CHECK(info.storage == options.storage || options.storage == ST_STORAGE_AUTO);
            CHECK(info.writable == !!(flags & ST_OPEN_COPY_ON_WRITE));
            is_whole(checkpoint, with(folder, "/"));
            st_close(checkpoint);
        }
}

static void copy_on_write_is_of_one_shard(void) {
    const char *folder = write_sharded("written", 1);
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open_path(folder, storage, ST_OPEN_COPY_ON_WRITE);
        const void *data;
        unsigned char read[8192];
        OK(st_tensor_ptr(checkpoint, SHARDED_HEAD, &data, NULL, &err));
        memset((unsigned char *)data, 0xee, fixture_sharded[SHARDED_HEAD].nbytes);
        for (size_t i = 0; i < SHARDED_HEAD; i++)
            tensor_is_right(checkpoint, i);
        OK(st_tensor_read(checkpoint, SHARDED_HEAD, NULL, 0, read, sizeof(read), &err));
        CHECK(fixture_is(read, fixture_sharded[SHARDED_HEAD].at, sizeof(read)));
        st_close(checkpoint);
    }
    opens(folder, with(folder, "/"));
}

static void links_out_of_the_folder(void) {
    const char *folder = write_sharded("linked", 1);
    const char *second = fixture_path_in("linked", fixture_shards[1]);
    CHECK(rename(second, fixture_path("elsewhere")) == 0 && symlink("../elsewhere", second) == 0);
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_SHARD_OUTSIDE, st_open(folder, NULL, &checkpoint, &err));
    SAYS(fixture_shards[1]);
    SAYS("ST_OPEN_FOLLOW_LINKS");
    CHECK(!checkpoint);
    FAILS(ST_ERR_SHARD_OUTSIDE, st_open(fixture_path_in("linked", fixture_index), NULL, &checkpoint, &err));
    checkpoint = fixture_open_path(folder, ST_STORAGE_AUTO, ST_OPEN_FOLLOW_LINKS);
    names_are_right(checkpoint);
    for (size_t i = 0; i < SHARDED_LEN; i++)
        tensor_is_right(checkpoint, i);
    /* Called as the index calls it, wherever it lies. */
    CHECK(strcmp(st_shard_path(checkpoint, 1), second) == 0);
    st_close(checkpoint);
}

static void one_shard_unlinked_or_replaced(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *folder = write_sharded("replaced", 1);
        st_checkpoint *checkpoint = fixture_open_path(folder, storage, 0), *other;
        CHECK(unlink(fixture_path_in("replaced", fixture_shards[0])) == 0);
        for (size_t i = 0; i < SHARDED_LEN; i++)
            tensor_is_right(checkpoint, i);
        FAILS(ST_ERR_SHARD_MISSING, st_open(folder, NULL, &other, &err));
        SAYS(fixture_shards[0]);
        CHECK(rename(fixture_write("sample.safetensors", &fixture_sample), fixture_path_in("replaced", fixture_shards[0])) == 0);
        for (size_t i = 0; i < SHARDED_LEN; i++)
            tensor_is_right(checkpoint, i);
        FAILS(ST_ERR_INDEX_MISMATCH, st_open(folder, NULL, &other, &err));
        SAYS("\"embed\"");
        st_close(checkpoint);
    }
}

static void one_shard_truncated(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *folder = write_sharded("cut", 1);
        st_checkpoint *checkpoint = fixture_open_path(folder, storage, 0);
        CHECK(truncate(fixture_path_in("cut", fixture_shards[1]), 16) == 0);
        unsigned char read[16];
        const void *data;
        for (size_t i = SHARDED_ONE; i <= SHARDED_THREE; i++) {
            FAILS(ST_ERR_TRUNCATED, st_tensor_read(checkpoint, i, NULL, 0, read, sizeof(read), &err));
            SAYS(fixture_shards[1]);
            SAYS(fixture_sharded[i].name);
        }
        /* Misaligned, so not mapped. */
        FAILS(ST_ERR_TRUNCATED, st_tensor_ptr(checkpoint, SHARDED_THREE, &data, NULL, &err));
        names_are_right(checkpoint);
        tensor_is_right(checkpoint, SHARDED_EMBED);
        tensor_is_right(checkpoint, SHARDED_NORM);
        tensor_is_right(checkpoint, SHARDED_HEAD);
        st_checkpoint *other;
        FAILS(ST_ERR_HEADER_LENGTH, st_open(folder, NULL, &other, &err));
        SAYS(fixture_shards[1]);
        /* It comes back, and is read again. */
        write_sharded("cut", 1);
        for (size_t i = 0; i < SHARDED_LEN; i++)
            tensor_is_right(checkpoint, i);
        st_close(checkpoint);
    }
}

static void refuses(st_status status, const char *path, const char *named) {
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    FAILS(status, st_open(path, NULL, &checkpoint, &err));
    SAYS(named);
    CHECK(!checkpoint);
}

static void write_text(const char *path, const char *text) {
    fixture_write_bytes(path, text, strlen(text));
}

static void index_that_is_wrong(void) {
    static const struct {
        st_status status;
        const char *text, *named;
    } wrong[] = {
        {ST_ERR_INDEX_JSON, "{", fixture_index},
        {ST_ERR_INDEX_UTF8, "{\"\xff\":\"x\"}", fixture_index},
        {ST_ERR_INDEX_STRUCTURE, "{\"weight_map\":{}}", fixture_index},
        {ST_ERR_INDEX_STRUCTURE, "{\"weight_map\":{\"embed\":1}}", "\"embed\""},
        {ST_ERR_INDEX_DUPLICATE, "{\"weight_map\":{},\"weight_map\":{}}", "weight_map"},
        {ST_ERR_INDEX_DUPLICATE,
         "{\"norm\":\"model-00001-of-00003.safetensors\",\"embed\":\"model-00001-of-00003.safetensors\","
         "\"norm\":\"model-00002-of-00003.safetensors\"}",
         "\"norm\""},
        {ST_ERR_INDEX_MISMATCH, "{\"embed\":\"model-00001-of-00003.safetensors\"}", "\"norm\""},
        {ST_ERR_INDEX_MISMATCH, "{\"more\":\"model-00002-of-00003.safetensors\"}", "\"more\""},
        {ST_ERR_SHARD_MISSING, "{\"embed\":\"none.safetensors\"}", "\"none.safetensors\""},
        {ST_ERR_SHARD_OUTSIDE, "{\"embed\":\"../none.safetensors\"}", "\"../none.safetensors\""},
        {ST_ERR_SHARD_OUTSIDE, "{\"embed\":\"/etc/passwd\"}", "\"/etc/passwd\""},
        {ST_ERR_NOT_A_FILE, "{\"embed\":\"\"}", "a directory"},
    };
    const char *folder = write_sharded("wrong", 1);
    for (size_t i = 0; i < LEN(wrong); i++) {
        write_text(fixture_path_in("wrong", fixture_index), wrong[i].text);
        refuses(wrong[i].status, folder, wrong[i].named);
        refuses(wrong[i].status, fixture_path_in("wrong", fixture_index), wrong[i].named);
    }
    CHECK(truncate(fixture_path_in("wrong", fixture_index), 100000001) == 0);
    refuses(ST_ERR_INDEX_TOO_LARGE, folder, "100000001");
}

static void folder_that_is_no_checkpoint(void) {
    const char *folder = write_sharded("none", 0);
    CHECK(unlink(fixture_path_in("none", fixture_shards[2])) == 0);
    refuses(ST_ERR_SHARD_MISSING, folder, fixture_shards[2]);
    CHECK(link(fixture_path_in("none", fixture_shards[0]), fixture_path_in("none", fixture_shards[2])) == 0);
    refuses(ST_ERR_SHARD_TWICE, folder, "are the same file");
    write_text(fixture_path_in("none", "other.safetensors"), "");
    refuses(ST_ERR_FOLDER_AMBIGUOUS, folder, "other.safetensors");
    CHECK(unlink(fixture_path_in("none", "other.safetensors")) == 0);
    for (size_t i = 0; i < SHARDS; i++)
        CHECK(unlink(fixture_path_in("none", fixture_shards[i])) == 0);
    refuses(ST_ERR_FOLDER_EMPTY, folder, "/none");
}

/* Of several shards that are missing all are counted, and the first one is named. */
static void missing_shards_are_counted(void) {
    for (int with_index = 0; with_index < 2; with_index++) {
        const char *folder = write_sharded(with_index ? "gone_indexed" : "gone", with_index);
        const char *name = with_index ? "gone_indexed" : "gone";
        CHECK(unlink(fixture_path_in(name, fixture_shards[1])) == 0);
        refuses(ST_ERR_SHARD_MISSING, folder, "model-00002-of-00003.safetensors\" is missing");
        /* What is damaged is of no interest while something is missing. */
        CHECK(truncate(fixture_path_in(name, fixture_shards[0]), 5) == 0);
        CHECK(unlink(fixture_path_in(name, fixture_shards[2])) == 0);
        refuses(ST_ERR_SHARD_MISSING, folder, "model-00002-of-00003.safetensors\" and 1 more are missing");
    }
    const char *folder = write_sharded("gone_link", 1), *second = fixture_path_in("gone_link", fixture_shards[1]);
    CHECK(unlink(second) == 0 && symlink("nowhere", second) == 0);
    refuses(ST_ERR_SHARD_MISSING, folder, "a symbolic link that leads nowhere");
}

/* By its directory or by its own path. An index that is not there at all is a file that is not there. */
static void index_that_leads_nowhere(void) {
    const char *folder = write_sharded("nowhere", 1), *index = fixture_path_in("nowhere", fixture_index);
    CHECK(unlink(index) == 0);
    refuses(ST_ERR_IO, index, fixture_index);
    CHECK(err.os_error == ENOENT);
    CHECK(symlink("none.json", index) == 0);
    refuses(ST_ERR_SHARD_MISSING, folder, "a symbolic link that leads nowhere");
    refuses(ST_ERR_SHARD_MISSING, index, "a symbolic link that leads nowhere");
    refuses(ST_ERR_IO, fixture_path_in("no_such_folder", fixture_index), "no_such_folder");
    CHECK(err.os_error == ENOENT);
}

/* An index that is named by its path may be a link to wherever. One that was found may not. */
static void index_that_leads_elsewhere(void) {
    const char *folder = write_sharded("led", 1), *index = fixture_path_in("led", fixture_index);
    CHECK(rename(index, fixture_path("led.json")) == 0 && symlink("../led.json", index) == 0);
    refuses(ST_ERR_SHARD_OUTSIDE, folder, "ST_OPEN_FOLLOW_LINKS");
    opens(index, with(folder, "/"));
    st_checkpoint *checkpoint = fixture_open_path(folder, ST_STORAGE_AUTO, ST_OPEN_FOLLOW_LINKS);
    is_whole(checkpoint, with(folder, "/"));
    st_close(checkpoint);
}

static void folder_of_folders(void) {
    CHECK(mkdir(fixture_path("ranks"), 0755) == 0 && mkdir(fixture_path("ranks/other"), 0755) == 0);
    refuses(ST_ERR_FOLDER_EMPTY, fixture_path("ranks"), "no .safetensors file");
    CHECK(!strstr(err.message, "below"));
    char name[16];
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof(name), "ranks/rank_%d", i);
        write_sharded(name, i % 2);
        refuses(ST_ERR_FOLDER_EMPTY, fixture_path("ranks"), "below it \"rank_0\"");
        if (i == 0)
            SAYS("\"rank_0\" has: open that");
        if (i == 1)
            SAYS("\"rank_0\" and \"rank_1\" have: open one of these");
        if (i == 4)
            SAYS("\"rank_0\", \"rank_1\", \"rank_2\" and 2 more have: open one of these");
    }
    /* As in a Hugging Face cache, of which the folder of the model is named instead of the snapshot. */
    CHECK(mkdir(fixture_path("models--a"), 0755) == 0 && mkdir(fixture_path("models--a/snapshots"), 0755) == 0);
    write_sharded("models--a/snapshots/0123", 1);
    refuses(ST_ERR_FOLDER_EMPTY, fixture_path("models--a"), "\"snapshots/0123\" has: open that");
}

static void download_that_was_not_finished(void) {
    const char *folder = write_sharded("download", 0);
    for (size_t i = 0; i < SHARDS; i++)
        CHECK(unlink(fixture_path_in("download", fixture_shards[i])) == 0);
    const char *file = fixture_write("download/model.safetensors.incomplete", &fixture_sample);
    refuses(ST_ERR_FOLDER_EMPTY, folder, "\"model.safetensors.incomplete\" is a download that was not finished");
    size_t len;
    free(fixture_slurp(file, &len));
    static const char *const names[] = {"a.incomplete", "a.part", "a.crdownload", "a.safetensors"};
    for (size_t i = 0; i < LEN(names); i++) {
        const char *cut = fixture_path_in("download", names[i]);
        const struct {
            off_t len;
            st_status status;
        } lengths[] = {{(off_t)len - 1, ST_ERR_TRUNCATED}, {20, ST_ERR_HEADER_LENGTH}, {3, ST_ERR_HEADER_TOO_SMALL}};
        for (size_t k = 0; k < LEN(lengths); k++) {
            CHECK(rename(fixture_write("whole", &fixture_sample), cut) == 0);
            CHECK(truncate(cut, lengths[k].len) == 0);
            refuses(lengths[k].status, cut, names[i]);
            CHECK(!strstr(err.message, "not finished") == (i + 1 == LEN(names)));
        }
        CHECK(truncate(cut, 0) == 0 && truncate(cut, 100000) == 0);
        refuses(ST_ERR_HEADER_JSON, cut, "zeros");
        CHECK(!strstr(err.message, "not finished") == (i + 1 == LEN(names)));
    }
}

/* That they have ended when st_open returns is looked at in fault.c: the system may list them for a moment longer. */
static void opening_leaves_no_threads(void) {
    const char *folder = write_sharded("threads", 1);
    const size_t before = test_entries("/proc/self/task");
    for (int i = 0; i < (test_is_instrumented() ? 20 : 500); i++) {
        st_checkpoint *checkpoint;
        OK(st_open(folder, NULL, &checkpoint, &err));
        st_close(checkpoint);
    }
    test_threads_end(before);
}

static int open_files(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void open_with_few_descriptors(void) {
    const char *folder = fixture_path("few");
    const int before = open_files();
    int refused = 0;
    for (rlim_t limit = 0; limit < 64; limit++) {
        const struct rlimit limits = {limit, 64};
        CHECK(setrlimit(RLIMIT_NOFILE, &limits) == 0);
        st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
        const st_status status = st_open(folder, NULL, &checkpoint, &err);
        if (status == ST_OK) {
            CHECK(open_files() == before + SHARDS);
            is_whole(checkpoint, with(folder, "/"));
            st_close(checkpoint);
            CHECK(open_files() == before);
            /* None at all, one, and two were too few. */
            CHECK(refused >= 3);
            return;
        }
        CHECK(status == ST_ERR_IO && err.os_error == EMFILE && !checkpoint);
        CHECK(open_files() == before);
        char said[64];
        snprintf(said, sizeof(said), "limit of this process is %d (ulimit -n)", (int)limit);
        SAYS(said);
        /* From the shards on it is they that there are too many of. */
        if (limit > (rlim_t)before + 1)
            SAYS("3 shards need 3 open files");
        refused++;
    }
    CHECK(!"64 descriptors are enough");
}

static void descriptors_run_out(void) {
    if (test_is_instrumented())
        SKIP("valgrind keeps descriptors for itself");
    write_sharded("few", 1);
    CHECK(test_in_child(open_with_few_descriptors) == 0);
}

static void *nothing(void *argument) {
    return argument;
}

static void open_without_threads(void) {
    const struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
    test_become_nobody();
    pthread_t thread;
    if (pthread_create(&thread, NULL, nothing, NULL) != EAGAIN)
        _exit(77);
    const char *folder = fixture_path("alone");
    opens(folder, with(folder, "/"));
}

static void threads_run_out(void) {
    if (test_is_instrumented())
        SKIP("limits threads");
    write_sharded("alone", 1);
    const int status = test_in_child(open_without_threads);
    if (status == 77 << 8)
        SKIP("RLIMIT_NPROC does not hold here");
    CHECK(status == 0);
}

enum { THREADS = 8 };
static pthread_barrier_t start;

static void *open_and_close(void *folder) {
    const char *slash = folder;
    char paths[512];
    CHECK(snprintf(paths, sizeof(paths), "%s/", slash) < (int)sizeof(paths));
    pthread_barrier_wait(&start);
    for (int i = 0; i < (test_is_instrumented() ? 3 : 100); i++) {
        st_checkpoint *checkpoint = fixture_open_path(folder, i % 3, 0);
        is_whole(checkpoint, paths);
        st_close(checkpoint);
    }
    return NULL;
}

static void folder_opened_by_many_threads(void) {
    const char *folder = write_sharded("many", 1);
    char path[512];
    CHECK(snprintf(path, sizeof(path), "%s", folder) < (int)sizeof(path));
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&start, NULL, THREADS) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, open_and_close, path) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&start);
}

/* What MindSpore wrote: tests/data/mindspore/README.md. */
static void folder_of_mindspore(void) {
    const char *data = test_setting("ST_TEST_DATA");
    if (!data)
        SKIP("ST_TEST_DATA is not set");
    static const char *const places[] = {"/mindspore/distributed/unified_3parts", "/mindspore/distributed/unified",
                                         "/mindspore/distributed/unified_3parts/param_name_map.json"};
    static const size_t shards[] = {4, 2, 4};
    st_checkpoint *full = fixture_open_path(with(data, "/mindspore/distributed/full.safetensors"), ST_STORAGE_AUTO, 0);
    for (size_t p = 0; p < LEN(places); p++) {
        st_checkpoint *unified = fixture_open_path(with(data, places[p]), ST_STORAGE_AUTO, 0);
        CHECK(st_shard_len(unified) == shards[p] && st_len(unified) == st_len(full) + 2);
        for (size_t i = 0; i < st_len(full); i++) {
            st_tensor tensor;
            size_t index, nbytes;
            const void *expected, *got;
            OK(st_tensor_info(full, i, &tensor, &err));
            CHECK(st_find(unified, tensor.name, &index) == ST_OK);
            OK(st_tensor_ptr(full, i, &expected, NULL, &err));
            OK(st_tensor_ptr(unified, index, &got, &nbytes, &err));
            CHECK(nbytes == tensor.nbytes && memcmp(got, expected, nbytes) == 0);
        }
        st_close(unified);
    }
    st_close(full);
}

static const test_case cases[] = {
    CASE(folder_and_index),
    CASE(folder_of_numbered_shards),
    CASE(folder_of_one_file),
    CASE(relative_paths),
    CASE(folder_that_the_root_does_not_lead_to),
    CASE(each_storage_and_flag),
    CASE(copy_on_write_is_of_one_shard),
    CASE(links_out_of_the_folder),
    CASE(one_shard_unlinked_or_replaced),
    CASE(one_shard_truncated),
    CASE(index_that_is_wrong),
    CASE(folder_that_is_no_checkpoint),
    CASE(missing_shards_are_counted),
    CASE(index_that_leads_nowhere),
    CASE(index_that_leads_elsewhere),
    CASE(folder_of_folders),
    CASE(download_that_was_not_finished),
    CASE(opening_leaves_no_threads),
    CASE(descriptors_run_out),
    CASE(threads_run_out),
    CASE(folder_opened_by_many_threads),
    CASE(folder_of_mindspore),
};

TEST_MAIN(cases)
