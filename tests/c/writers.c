/* Writers used by several threads and processes, in odd places and under odd names. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SMALL = 3000, THREADS = 8, EACH = 12, PIECES = 7 };

/* A generation of one small file. */
static fixture_generation one_file(unsigned number) {
    return (fixture_generation){number, 3, SMALL, 0, ST_WRITE_NO_SYNC, 0};
}

static st_writer *begin(const char *path, uint64_t max_shard_bytes, st_task *task) {
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.flags = ST_WRITE_NO_SYNC;
    options.max_shard_bytes = max_shard_bytes;
    options.task = task;
    st_writer *writer;
    OK(st_writer_open(path, &options, &writer, &err));
    return writer;
}

static void found_is(const char *path, const fixture_generation *generation) {
    CHECK(fixture_found(path, generation, 1) == generation);
}

/* --- threads ---------------------------------------------------------------------------------------------------------------- */

static struct {
    st_writer *writer;
    pthread_barrier_t start, declared;
    atomic_int sealed;
} shared;

/* Tensor i of a thread has the bytes from this on. */
static size_t place_of(size_t thread, size_t i) {
    return (thread * EACH + i) % 251;
}

static void name_of(char name[32], size_t thread, size_t i) {
    snprintf(name, 32, "%zu.%zu", thread, i);
}

static void *use_writer(void *number) {
    const size_t thread = (size_t)number;
    const uint64_t shape[] = {SMALL};
    char name[32];
    pthread_barrier_wait(&shared.start);
    for (size_t i = 0; i < EACH; i++) {
        name_of(name, thread, i);
        if (i % 2)
            OK(st_writer_declare(shared.writer, name, ST_DTYPE_U8, shape, 1, &err));
        else
            OK(st_writer_add(shared.writer, name, ST_DTYPE_U8, shape, 1, fixture_run(place_of(thread, i), SMALL), SMALL, &err));
        FAILS(ST_ERR_DUPLICATE_NAME, st_writer_declare(shared.writer, name, ST_DTYPE_U8, shape, 1, &err));
        snprintf(name, sizeof(name), "thread %zu, %zu", thread, i);
        OK(st_writer_metadata(shared.writer, name, "", &err));
    }
    pthread_barrier_wait(&shared.declared);
    for (size_t piece = 0; piece < PIECES; piece++)
        for (size_t i = 1; i < EACH; i += 2) {
            const size_t from = piece * SMALL / PIECES, to = (piece + 1) * SMALL / PIECES;
            name_of(name, thread, i);
            OK(st_writer_write(shared.writer, name, fixture_run(place_of(thread, i), SMALL) + from, to - from, &err));
        }
    FAILS(ST_ERR_SEALED, st_writer_metadata(shared.writer, "late", "", &err));
    return NULL;
}

static void in_threads(void *(*run)(void *), size_t threads) {
    pthread_t ids[THREADS];
    CHECK(pthread_barrier_init(&shared.start, NULL, (unsigned)threads) == 0);
    CHECK(pthread_barrier_init(&shared.declared, NULL, (unsigned)threads) == 0);
    for (size_t i = 0; i < threads; i++)
        CHECK(pthread_create(&ids[i], NULL, run, (void *)i) == 0);
    for (size_t i = 0; i < threads; i++)
        CHECK(pthread_join(ids[i], NULL) == 0);
    pthread_barrier_destroy(&shared.start);
    pthread_barrier_destroy(&shared.declared);
}

static void one_writer_of_many_threads(void) {
    fixture_run(250, SMALL);
    for (size_t per_shard = 0; per_shard <= 5; per_shard += 5) {
        const char *path = fixture_path(per_shard ? "parts.safetensors" : "threads.safetensors");
        shared.writer = begin(path, per_shard * SMALL, NULL);
        in_threads(use_writer, THREADS);
        OK(st_writer_finish(shared.writer, &err));
        st_checkpoint *checkpoint =
            fixture_open_path(per_shard ? fixture_path("parts.safetensors.index.json") : path, ST_STORAGE_AUTO, 0);
        CHECK(st_len(checkpoint) == THREADS * EACH && st_metadata_len(checkpoint) == THREADS * EACH);
        CHECK(st_shard_len(checkpoint) == (per_shard ? (THREADS * EACH + 4) / 5 : 1));
        for (size_t thread = 0; thread < THREADS; thread++)
            for (size_t i = 0; i < EACH; i++) {
                char name[32];
                size_t index, nbytes;
                const void *data;
                name_of(name, thread, i);
                CHECK(st_find(checkpoint, name, &index) == ST_OK);
                OK(st_tensor_ptr(checkpoint, index, &data, &nbytes, &err));
                CHECK(nbytes == SMALL && fixture_is(data, place_of(thread, i), SMALL));
            }
        st_close(checkpoint);
    }
}

static char common_path[512];

/* Writes generation number + 1 to the common path, some times. */
static void *write_common(void *number) {
    const fixture_generation own = one_file((unsigned)(size_t)number + 1);
    pthread_barrier_wait(&shared.start);
    for (int i = 0; i < (test_is_instrumented() ? 3 : 20); i++) {
        fixture_writing writing = {&own, common_path, NULL, NULL, 0, 0, 0};
        OK(fixture_go_on(&writing, &err));
    }
    return NULL;
}

static void writers_of_one_path_in_threads(void) {
    strcpy(common_path, fixture_model_in("common"));
    fixture_run(250, SMALL);
    in_threads(write_common, THREADS);
    fixture_generation any[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        any[i] = one_file(i + 1);
    fixture_only(common_path, fixture_found(common_path, any, THREADS));
}

/* Processes that each write a generation of their own, some times. */
static void in_processes(const char *path, const fixture_generation *generations, size_t len) {
    pid_t children[4];
    CHECK(len <= LEN(children));
    fflush(NULL);
    for (size_t i = 0; i < len; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            for (int round = 0; round < (test_is_instrumented() ? 3 : 20); round++)
                fixture_put(path, &generations[i]);
            _exit(0);
        }
    }
    for (size_t i = 0; i < len; i++) {
        int status;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
}

static void writers_of_one_path_in_processes(void) {
    const char *path = fixture_model_in("processes");
    const fixture_generation generations[4] = {
        {1, 3, SMALL, 0, ST_WRITE_NO_SYNC, 0},
        {2, 2, SMALL, 0, ST_WRITE_NO_SYNC | ST_WRITE_BLAKE3, 0},
        {3, 4, SMALL, 0, ST_WRITE_NO_SYNC, 1},
        {4, 1, SMALL, 0, 0, 1},
    };
    fixture_put_quickly(path, &generations[0]);
    in_processes(path, generations, 4);
    fixture_only(path, fixture_found(path, generations, 4));
}

static void writers_of_the_same_shards_in_processes(void) {
    const char *path = fixture_model_in("same_shards");
    const fixture_generation generations[2] = {{1, 4, SMALL, 2, ST_WRITE_NO_SYNC, 0}, {2, 2, SMALL, 2, ST_WRITE_NO_SYNC, 1}};
    in_processes(path, generations, 2);
    fixture_only(path, fixture_found(path, generations, 2));
}

static st_writer *inherited;

static void use_inherited(void) {
    const uint64_t shape[] = {SMALL};
    FAILS(ST_ERR_UNSUPPORTED, st_writer_add(inherited, "x", ST_DTYPE_U8, shape, 1, fixture_run(0, SMALL), SMALL, &err));
    SAYS("a child of its process");
    FAILS(ST_ERR_UNSUPPORTED, st_writer_declare(inherited, "x", ST_DTYPE_U8, shape, 1, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_writer_metadata(inherited, "k", "v", &err));
    FAILS(ST_ERR_UNSUPPORTED, st_writer_write(inherited, "t0", fixture_run(0, SMALL), 1, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_writer_finish(inherited, &err));
    st_writer_abort(inherited);
}

/* A child has a copy of the writer, whose files are the other one's: it takes nothing away, at whatever moment it was forked. */
static void a_child_leaves_the_files_of_its_parent(void) {
    if (test_is_emulated())
        SKIP("the emulator does not wipe pages in a child");
    const char *path = fixture_model_in("inherited");
    for (size_t shards = 0; shards <= 2; shards += 2) {
        const fixture_generation generation = {1, 2, SMALL, shards, ST_WRITE_NO_SYNC, 1};
        inherited = begin(path, shards ? SMALL : 0, NULL);
        CHECK(test_in_child(use_inherited) == 0);
        const uint64_t shape[] = {SMALL};
        OK(st_writer_metadata(inherited, "generation", "1", &err));
        for (size_t i = 0; i < 2; i++)
            OK(st_writer_declare(inherited, i ? "t1" : "t0", ST_DTYPE_U8, shape, 1, &err));
        for (size_t i = 0; i < 2; i++) {
            OK(st_writer_write(inherited, i ? "t1" : "t0", fixture_run(fixture_shift(&generation, i), SMALL), SMALL, &err));
            CHECK(test_in_child(use_inherited) == 0);
        }
        OK(st_writer_finish(inherited, &err));
        found_is(path, &generation);
        fixture_only(path, &generation);
    }
}

static atomic_bool declares;

static void *declare_on_and_on(void *writer) {
    const uint64_t shape[] = {0};
    for (int i = 0; atomic_load(&declares); i++) {
        char name[32];
        snprintf(name, sizeof(name), "%d", i);
        OK(st_writer_declare(writer, name, ST_DTYPE_U8, shape, 1, &err));
    }
    return NULL;
}

/* Also if a thread that is not in the child was in the middle of a call. */
static void a_child_that_is_forked_in_the_middle_of_a_call(void) {
    test_forks_beside_threads();
    if (test_is_emulated())
        SKIP("the emulator does not wipe pages in a child");
    inherited = begin(fixture_model_in("middle"), 0, NULL);
    pthread_t thread;
    atomic_store(&declares, true);
    CHECK(pthread_create(&thread, NULL, declare_on_and_on, inherited) == 0);
    for (int i = 0; i < (test_is_instrumented() ? 3 : 50); i++) {
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            /* Not use_inherited: what it uses of the C library may be locked, too. */
            const bool refused = st_writer_finish(inherited, NULL) == ST_ERR_UNSUPPORTED;
            st_writer_abort(inherited);
            _exit(refused ? 0 : 1);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && (status == 0 || test_is_instrumented()));
    }
    atomic_store(&declares, false);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(test_entries(fixture_path("middle")) == 3);
    st_writer_abort(inherited);
    CHECK(test_entries(fixture_path("middle")) == 2);
}

static void *cancel_when_it_writes(void *task) {
    st_progress progress = {0};
    while (progress.bytes_done == 0) {
        CHECK(st_task_progress(task, &progress) == ST_OK);
        usleep(100);
    }
    st_task_cancel(task);
    return NULL;
}

static void finish_is_cancelled_by_another_thread(void) {
    if (test_is_instrumented())
        SKIP("writes too much");
    for (size_t shards = 0; shards <= 4; shards += 4) {
        const char *path = fixture_model_in("cancelled");
        const fixture_generation old = one_file(1), new = {2, 4, 24 << 20, shards, ST_WRITE_BLAKE3, 0};
        fixture_put_quickly(path, &old);
        const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
        fixture_writing writing = {&new, path, NULL, NULL, 0, 0, 0};
        OK(st_task_new(&writing.task, &err));
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, cancel_when_it_writes, writing.task) == 0);
        FAILS(ST_ERR_CANCELLED, fixture_go_on(&writing, &err));
        CHECK(pthread_join(thread, NULL) == 0);
        FAILS(ST_ERR_CANCELLED, st_writer_finish(writing.writer, &err));
        /* The writer has a reference of its own. */
        st_task_free(writing.task);
        FAILS(ST_ERR_CANCELLED, st_writer_finish(writing.writer, &err));
        st_writer_abort(writing.writer);
        found_is(path, &old);
        fixture_only(path, &old);
        CHECK(test_entries("/proc/self/fd") == descriptors);
        test_threads_end(threads);
    }
}

static struct {
    st_task *task;
    atomic_bool ended;
    bool grew;
} watch;

static void *watch_progress(void *nothing) {
    (void)nothing;
    st_progress last = {0}, now;
    while (!atomic_load(&watch.ended)) {
        CHECK(st_task_progress(watch.task, &now) == ST_OK);
        CHECK(now.bytes_done >= last.bytes_done && now.items_done >= last.items_done && now.bytes_total >= last.bytes_total);
        last = now;
        usleep(50);
    }
    return NULL;
}

static void finish_tells_its_progress(void) {
    const size_t nbytes = test_is_instrumented() ? 1 << 16 : 9 << 20;
    const uint32_t flags[] = {0, ST_WRITE_BLAKE3 | ST_WRITE_SHA256 | ST_WRITE_CRC};
    for (size_t i = 0; i < LEN(flags); i++)
        for (int streamed = 0; streamed < 2; streamed++) {
            const char *path = fixture_model_in("watched");
            const fixture_generation generation = {1, 4, nbytes, 2, ST_WRITE_NO_SYNC | flags[i], streamed};
            OK(st_task_new(&watch.task, &err));
            fixture_writing writing = {&generation, path, watch.task, NULL, 0, 0, 0};
            atomic_store(&watch.ended, false);
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, watch_progress, NULL) == 0);
            OK(fixture_go_on(&writing, &err));
            atomic_store(&watch.ended, true);
            CHECK(pthread_join(thread, NULL) == 0);
            st_progress progress;
            CHECK(st_task_progress(watch.task, &progress) == ST_OK);
            CHECK(progress.bytes_done == progress.bytes_total && progress.items_done == 4 && progress.items_total == 4);
            CHECK(streamed || progress.bytes_total >= 4 * nbytes);
            st_task_free(watch.task);
        }
}

/* --- places ----------------------------------------------------------------------------------------------------------------- */

static void write_without_permission(void) {
    const char *path = fixture_path_in("forbidden", "model.safetensors");
    test_become_nobody();
    st_writer *writer = (st_writer *)&err;
    FAILS(ST_ERR_IO, st_writer_open(path, NULL, &writer, &err));
    CHECK(err.os_error == EACCES && !writer);
    SAYS("model.safetensors");
    const fixture_generation old = one_file(1);
    found_is(path, &old);
}

static void a_folder_without_permission(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers open files of their own");
    const char *path = fixture_model_in("forbidden");
    const fixture_generation old = one_file(1);
    fixture_put(path, &old);
    CHECK(chmod(fixture_path("forbidden"), 0555) == 0);
    const int status = test_in_child(write_without_permission);
    CHECK(chmod(fixture_path("forbidden"), 0755) == 0);
    CHECK(status == 0);
    fixture_only(path, &old);
}

static void finish_without_permission(void) {
    const char *path = fixture_path_in("revoked", "model.safetensors");
    const fixture_generation old = one_file(1), new = one_file(2);
    test_become_nobody();
    st_writer *writer = begin(path, 0, NULL);
    OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    CHECK(chmod(fixture_path("revoked"), 0555) == 0);
    FAILS(ST_ERR_IO, st_writer_finish(writer, &err));
    CHECK(err.os_error == EACCES);
    found_is(path, &old);
    CHECK(chmod(fixture_path("revoked"), 0755) == 0);
    OK(st_writer_finish(writer, &err));
    fixture_put(path, &new);
    fixture_only(path, &new);
}

static void permission_that_goes_and_comes_back(void) {
    const char *path = fixture_model_in("revoked");
    const fixture_generation old = one_file(1);
    fixture_put(path, &old);
    if (geteuid() == 0)
        CHECK(chown(fixture_path("revoked"), 65534, 65534) == 0);
    CHECK(test_in_child(finish_without_permission) == 0);
}

static void write_relative(void) {
    CHECK(mkdir(fixture_path("here"), 0755) == 0 && chdir(fixture_path("here")) == 0);
    const fixture_generation old = one_file(1), new = {2, 2, SMALL, 2, ST_WRITE_NO_SYNC, 0};
    fixture_put("model.safetensors", &old);
    const char *const names[] = {"model.safetensors", "./model.safetensors", "../here/model.safetensors"};
    for (size_t i = 0; i < LEN(names); i++) {
        CHECK(chdir(fixture_path("here")) == 0);
        st_writer *writer = begin(names[i], i == 1 ? 1 : 0, NULL);
        OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
        OK(st_writer_add(writer, "u", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
        CHECK(chdir("/") == 0);
        OK(st_writer_finish(writer, &err));
        CHECK(access("/model.safetensors", F_OK) != 0);
    }
    const char *path = fixture_path_in("here", "model.safetensors");
    st_close(fixture_open_path(path, ST_STORAGE_AUTO, 0));
    fixture_put(path, &new);
    fixture_only(path, &new);
}

static void a_relative_path_after_chdir(void) {
    fixture_path("");
    CHECK(test_in_child(write_relative) == 0);
}

static void a_folder_that_is_renamed(void) {
    for (size_t shards = 0; shards <= 2; shards += 2) {
        char path[512], moved[600], folder[512], moved_folder[512];
        strcpy(path, fixture_model_in(shards ? "before_shards" : "before"));
        strcpy(folder, fixture_path(shards ? "before_shards" : "before"));
        strcpy(moved_folder, fixture_path(shards ? "after_shards" : "after"));
        snprintf(moved, sizeof(moved), "%s/model.safetensors", moved_folder);
        const fixture_generation old = {1, 2, SMALL, shards, ST_WRITE_NO_SYNC, 0};
        fixture_put(path, &old);
        st_writer *writer = begin(path, shards ? 1 : 0, NULL);
        OK(st_writer_metadata(writer, "generation", "3", &err));
        const uint64_t shape[] = {1};
        OK(st_writer_add(writer, "t0", ST_DTYPE_U8, shape, 1, fixture_run(3 * 97 % 251, 1), 1, &err));
        OK(st_writer_declare(writer, "t1", ST_DTYPE_U8, shape, 1, &err));
        OK(st_writer_write(writer, "t1", fixture_run((3 * 97 + 7) % 251, 1), 1, &err));
        CHECK(rename(folder, moved_folder) == 0);
        OK(st_writer_finish(writer, &err));
        const fixture_generation third = {3, 2, 1, shards, 0, 0};
        found_is(moved, &third);
        fixture_only(moved, &third);
        CHECK(access(folder, F_OK) != 0);
    }
}

static void a_folder_that_is_removed(void) {
    const char *path = fixture_model_in("gone");
    st_writer *writer = begin(path, 0, NULL);
    OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    fixture_empty(path);
    CHECK(rmdir(fixture_path("gone")) == 0);
    FAILS(ST_ERR_IO, st_writer_finish(writer, &err));
    CHECK(err.os_error == ENOENT);
    FAILS(ST_ERR_IO, st_writer_finish(writer, &err));
    st_writer_abort(writer);
}

/* What has come to the place meanwhile, and is no file, is left alone. */
static void a_folder_that_comes_to_the_place(void) {
    const char *path = fixture_model_in("taken");
    for (int is_fifo = 0; is_fifo < 2; is_fifo++) {
        st_writer *writer = begin(path, 0, NULL);
        OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
        CHECK(is_fifo ? mkfifo(path, 0600) == 0 : mkdir(path, 0755) == 0);
        FAILS(ST_ERR_NOT_A_FILE, st_writer_finish(writer, &err));
        CHECK(test_entries(fixture_path("taken")) == 4);
        CHECK(remove(path) == 0);
        OK(st_writer_finish(writer, &err));
        st_close(fixture_open_path(path, ST_STORAGE_AUTO, 0));
        CHECK(unlink(path) == 0);
    }
}

/* A link is replaced, and not what it leads to. */
static void a_link_at_the_place(void) {
    const char *path = fixture_model_in("linked"), *other = fixture_path_in("linked", "other");
    const fixture_generation old = one_file(1), new = one_file(2);
    fixture_put(path, &old);
    CHECK(rename(path, other) == 0 && chmod(other, 0600) == 0 && symlink("other", path) == 0);
    fixture_put(path, &new);
    struct stat about;
    CHECK(lstat(path, &about) == 0 && S_ISREG(about.st_mode));
    found_is(path, &new);
    found_is(other, &old);
    CHECK(unlink(path) == 0 && symlink("nowhere", path) == 0);
    fixture_put(path, &new);
    found_is(path, &new);
}

/* --- names ------------------------------------------------------------------------------------------------------------------ */

static void names_of_files(void) {
    char longest[256], path[800];
    memset(longest, 'n', 255);
    longest[255] = 0;
    strcpy(longest + 255 - strlen(".safetensors"), ".safetensors");
    const char *const names[] = {
        longest,
        "with some spaces .safetensors",
        "\xe6\x9d\x83\xe9\x87\x8d.safetensors",
        "a\nnewline\tand\x01more.safetensors",
        "\xff\xfe.safetensors",
        "%s%n\"quoted\".safetensors",
        ".hidden.safetensors",
        "-rf.safetensors",
    };
    const fixture_generation old = one_file(1), new = one_file(2);
    for (size_t i = 0; i < LEN(names); i++) {
        char folder[32];
        snprintf(folder, sizeof(folder), "names%zu", i);
        CHECK(mkdir(fixture_path(folder), 0755) == 0);
        snprintf(path, sizeof(path), "%s/%s", fixture_path(folder), names[i]);
        fixture_put(path, &old);
        fixture_put(path, &new);
        found_is(path, &new);
        fixture_only(path, &new);
        /* Messages stay one line. */
        st_writer *writer = begin(path, 0, NULL);
        OK(st_writer_declare(writer, "t", ST_DTYPE_U8, NULL, 0, &err));
        FAILS(ST_ERR_INCOMPLETE, st_writer_finish(writer, &err));
        st_writer_abort(writer);
        fixture_only(path, &new);

        st_writer_options options = ST_WRITER_OPTIONS_INIT;
        options.max_shard_bytes = SMALL;
        options.flags = ST_WRITE_NO_SYNC;
        if (i == 0) {
            /* Names of shards are longer. */
            FAILS(ST_ERR_IO, st_writer_open(path, &options, &writer, &err));
            CHECK(err.os_error == ENAMETOOLONG);
        } else if (names[i][0] == '\xff') {
            FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
        } else {
            const fixture_generation sharded = {3, 3, SMALL, 3, ST_WRITE_NO_SYNC, 0};
            fixture_put(path, &sharded);
            found_is(path, &sharded);
            CHECK(access(path, F_OK) != 0);
            fixture_only(path, &sharded);
        }
    }
    /* One more is too many. */
    snprintf(path, sizeof(path), "%s/n%s", fixture_path("names0"), longest);
    st_writer *writer;
    FAILS(ST_ERR_IO, st_writer_open(path, NULL, &writer, &err));
    CHECK(err.os_error == ENAMETOOLONG);
}

/* Temporary files of another output are not this one's, however similar the names. */
static void similar_names(void) {
    const char *one = fixture_model_in("similar"), *other = fixture_path_in("similar", "model.safetensors.old");
    st_writer *writer = begin(one, 0, NULL), *second = begin(other, 0, NULL);
    OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    OK(st_writer_add(second, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    st_writer_abort(begin(one, 1, NULL));
    st_writer_abort(begin(other, 1, NULL));
    /* What is called like one, but not quite. */
    static const char *const others[] = {
        ".model.safetensors.0123456789abcdeF.st-tmp",
        ".model.safetensors.0123.st-tmp",
        ".model.safetensors.0123456789abcdef.st-tmp2",
        "model.safetensors.0123456789abcdef.st-tmp",
    };
    for (size_t i = 0; i < LEN(others); i++)
        fixture_write_bytes(fixture_path_in("similar", others[i]), "mine", 4);
    /* And what is: of a writer that has died, it seems. */
    const char *dead = fixture_path_in("similar", ".model.safetensors.0123456789abcdef.st-tmp");
    fixture_write_bytes(dead, "dead", 4);
    OK(st_writer_finish(writer, &err));
    OK(st_writer_finish(second, &err));
    st_writer_abort(begin(one, 0, NULL));
    CHECK(access(dead, F_OK) != 0);
    for (size_t i = 0; i < LEN(others); i++)
        CHECK(access(fixture_path_in("similar", others[i]), F_OK) == 0);
    CHECK(test_entries(fixture_path("similar")) == 2 + 2 + LEN(others));
}

/* --- permissions ------------------------------------------------------------------------------------------------------------ */

static mode_t mode_of(const char *path) {
    struct stat about;
    CHECK(lstat(path, &about) == 0);
    return about.st_mode & 07777;
}

static void permissions_of_new_files(void) {
    static const mode_t masks[] = {0, 022, 027, 077};
    const mode_t before = umask(022);
    for (size_t i = 0; i < LEN(masks); i++)
        for (size_t shards = 0; shards <= 2; shards += 2) {
            const char *path = fixture_model_in("modes");
            fixture_empty(path);
            umask(masks[i]);
            fixture_put(path, &(fixture_generation){1, 2, SMALL, shards, ST_WRITE_NO_SYNC, 0});
            umask(022);
            if (!shards) {
                CHECK(mode_of(path) == (0666 & ~masks[i]));
                continue;
            }
            CHECK(mode_of(fixture_path_in("modes", "model-00001-of-00002.safetensors")) == (0666 & ~masks[i]));
            CHECK(mode_of(fixture_path_in("modes", "model-00002-of-00002.safetensors")) == (0666 & ~masks[i]));
            CHECK(mode_of(fixture_path_in("modes", "model.safetensors.index.json")) == (0666 & ~masks[i]));
        }
    umask(before);
}

static void permissions_of_replaced_files(void) {
    static const mode_t modes[] = {0600, 0640, 0444, 0664, 0755};
    const char *path = fixture_model_in("replaced");
    const mode_t before = umask(027);
    for (size_t i = 0; i < LEN(modes); i++) {
        fixture_put(path, &(fixture_generation){1, 2, SMALL, 0, ST_WRITE_NO_SYNC, 0});
        CHECK(chmod(path, modes[i]) == 0);
        st_writer *writer = begin(path, 0, NULL);
        OK(st_writer_declare(writer, "t", ST_DTYPE_U8, NULL, 0, &err));
        OK(st_writer_write(writer, "t", "x", 1, &err));
        OK(st_writer_finish(writer, &err));
        CHECK(mode_of(path) == modes[i]);
    }
    const fixture_generation shards = {1, 2, SMALL, 2, ST_WRITE_NO_SYNC, 0};
    fixture_put(path, &shards);
    const char *shard = fixture_path_in("replaced", "model-00002-of-00002.safetensors");
    const char *index = fixture_path_in("replaced", "model.safetensors.index.json");
    CHECK(chmod(shard, 0600) == 0 && chmod(index, 0604) == 0);
    fixture_put(path, &shards);
    CHECK(mode_of(shard) == 0600 && mode_of(index) == 0604);
    CHECK(mode_of(fixture_path_in("replaced", "model-00001-of-00002.safetensors")) == modes[LEN(modes) - 1]);
    umask(before);
}

/* --- the rest --------------------------------------------------------------------------------------------------------------- */

static void more_shards_than_descriptors(void) {
    const struct rlimit few = {24, 24};
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    const char *path = fixture_path_in("descriptors", "model.safetensors");
    const fixture_generation old = {1, 4, SMALL, 2, ST_WRITE_NO_SYNC, 0}, new = {2, 40, SMALL, 40, ST_WRITE_NO_SYNC, 0};
    for (int streamed = 0; streamed < 2; streamed++) {
        fixture_generation many = new;
        many.streamed = streamed;
        fixture_writing writing = {&many, path, NULL, NULL, 0, 0, 0};
        FAILS(ST_ERR_IO, fixture_go_on(&writing, &err));
        CHECK(err.os_error == EMFILE);
        st_writer_abort(writing.writer);
        found_is(path, &old);
        fixture_only(path, &old);
    }
}

static void descriptors_that_run_out(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers keep descriptors for themselves");
    const fixture_generation old = {1, 4, SMALL, 2, ST_WRITE_NO_SYNC, 0};
    fixture_put(fixture_model_in("descriptors"), &old);
    CHECK(test_in_child(more_shards_than_descriptors) == 0);
}

static void descriptors_close_on_exec(void) {
    const char *path = fixture_model_in("exec");
    bool open_before[256];
    for (int fd = 0; fd < 256; fd++)
        open_before[fd] = fcntl(fd, F_GETFD) >= 0;
    st_writer *writer = begin(path, 1, NULL);
    const uint64_t shape[] = {1};
    OK(st_writer_declare(writer, "a", ST_DTYPE_U8, shape, 1, &err));
    OK(st_writer_declare(writer, "b", ST_DTYPE_U8, shape, 1, &err));
    OK(st_writer_write(writer, "a", "x", 1, &err));
    for (int fd = 0; fd < 256; fd++)
        CHECK(open_before[fd] || fcntl(fd, F_GETFD) < 0 || (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    st_writer_abort(writer);
    st_writer_abort(NULL);
    CHECK(test_entries(fixture_path("exec")) == 2);
}

/* Nothing is left in memory, on the disk or among the descriptors, however a writer ends. */
static void writers_leave_nothing(void) {
    char path[512], folder[512];
    strcpy(path, fixture_model_in("nothing"));
    strcpy(folder, fixture_path("nothing"));
    const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
    for (int i = 0; i < (test_is_instrumented() ? 5 : 100); i++) {
        st_writer *writer = begin(path, i % 2 ? SMALL : 0, NULL);
        if (i % 3 > 0)
            OK(st_writer_declare(writer, "t", ST_DTYPE_U8, NULL, 0, &err));
        if (i % 3 > 1)
            OK(st_writer_write(writer, "t", "x", 1, &err));
        st_writer_abort(writer);
        CHECK(test_entries(folder) == 2);
    }
    CHECK(test_entries("/proc/self/fd") == descriptors);
    test_threads_end(threads);
}

static const test_case cases[] = {
    CASE(one_writer_of_many_threads),
    CASE(writers_of_one_path_in_threads),
    CASE(writers_of_one_path_in_processes),
    CASE(writers_of_the_same_shards_in_processes),
    CASE(a_child_leaves_the_files_of_its_parent),
    CASE(a_child_that_is_forked_in_the_middle_of_a_call),
    CASE(finish_is_cancelled_by_another_thread),
    CASE(finish_tells_its_progress),
    CASE(a_folder_without_permission),
    CASE(permission_that_goes_and_comes_back),
    CASE(a_relative_path_after_chdir),
    CASE(a_folder_that_is_renamed),
    CASE(a_folder_that_is_removed),
    CASE(a_folder_that_comes_to_the_place),
    CASE(a_link_at_the_place),
    CASE(names_of_files),
    CASE(similar_names),
    CASE(permissions_of_new_files),
    CASE(permissions_of_replaced_files),
    CASE(descriptors_that_run_out),
    CASE(descriptors_close_on_exec),
    CASE(writers_leave_nothing),
};

TEST_MAIN(cases)
