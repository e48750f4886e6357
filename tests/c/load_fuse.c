/* Loading from a file system that is slow or broken, as those of networks are: tests/fuse/slow_fs.c. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* --- mounting ----------------------------------------------------------------------------------------------------- */

static pid_t server;
static char mountpoint[512];

static void unmount(void) {
    if (!server)
        return;
    kill(server, SIGTERM);
    waitpid(server, NULL, 0);
    /* One that was killed could not do it itself. */
    umount2(mountpoint, MNT_DETACH);
    server = 0;
}

static bool is_mounted(void) {
    struct stat here, above;
    CHECK(stat(fixture_path(""), &above) == 0);
    return stat(mountpoint, &here) == 0 && here.st_dev != above.st_dev;
}

/* Mounts the folder "served" with these options, which may be empty. */
static void mount_slow(const char *options) {
    static bool registered;
    const char *program = test_setting("ST_TEST_SLOW_FS");
    if (!program)
        SKIP("there is no libfuse3 here");
    if (access("/dev/fuse", R_OK | W_OK) != 0)
        SKIP("/dev/fuse is not to be had");
    if (geteuid() != 0)
        SKIP("only root mounts and unmounts without help");
    char folder[512];
    strcpy(folder, fixture_path("served"));
    strcpy(mountpoint, fixture_path("mounted"));
    CHECK(mkdir(folder, 0755) == 0 || errno == EEXIST);
    CHECK(mkdir(mountpoint, 0755) == 0 || errno == EEXIST);
    if (!registered)
        atexit(unmount);
    registered = true;
    fflush(NULL);
    server = fork();
    CHECK(server >= 0);
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        execl(program, program, folder, mountpoint, "-f", *options ? "-o" : NULL, options, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 12000 && !is_mounted(); i++) {
        usleep(10000);
        if (waitpid(server, NULL, WNOHANG) != 0) {
            server = 0;
            SKIP("nothing can be mounted here");
        }
    }
    CHECK(is_mounted());
}

/* What the server says of its reads. */
static void reads_so_far(unsigned long long *reads, unsigned *at_once) {
    char text[128], path[600];
    snprintf(path, sizeof(path), "%s/.reads", mountpoint);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    CHECK(n > 0 && close(fd) == 0);
    text[n] = 0;
    CHECK(sscanf(text, "reads %llu bytes %*u at_once %u", reads, at_once) == 2);
}

/* --- the model, as it was written and as it is served ------------------------------------------------------------- */

static st_request requests[L_LEN];
static loading it;
static st_checkpoint *written;

/* Mounts, and knows what is right without a read of what is mounted. */
static void serve(const char *options) {
    mount_slow(options);
    char path[600];
    strcpy(path, fixture_path("served/model.safetensors"));
    size_t len;
    unsigned char *bytes = fixture_bytes(&loading_model, &len);
    fixture_write_bytes(path, bytes, len);
    free(bytes);
    written = fixture_open_path(path, ST_STORAGE_READ, 0);
    it = loading_of(written, requests, loading_whole(written, requests, L_LEN));
    snprintf(path, sizeof(path), "%s/model.safetensors", mountpoint);
    it.checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
}

static void stop_serving(void) {
    st_close(it.checkpoint);
    st_close(written);
    loading_free(&it);
    unmount();
}

static void load_by_each_engine(void) {
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading_start(&it, &options);
        loading_end(&it);
    }
}

static void what_is_served_is_loaded(void) {
    serve("");
    loading_start(&it, NULL);
    loading_end(&it);
    /* For such file systems io_uring would make a thread for each read. */
    CHECK(!(it.engines & ST_ENGINE_URING));
    load_by_each_engine();
    stop_serving();
}

static void latency_is_hidden_by_reading_at_once(void) {
    serve("latency_us=3000");
    unsigned long long reads;
    unsigned at_once;
    loading_start(&it, NULL);
    loading_end(&it);
    reads_so_far(&reads, &at_once);
    CHECK(reads > 1 && at_once > 1);
    load_by_each_engine();
    stop_serving();
}

/* Few small shards are opened one after another only as long as the storage is quick. */
static void shards_are_opened_at_once(void) {
    /* Long beside the start of a thread, also on a busy machine. */
    mount_slow("latency_us=50000");
    fixture_write_sharded("served/sharded", 0);
    char path[600];
    snprintf(path, sizeof(path), "%s/sharded", mountpoint);
    st_checkpoint *checkpoint;
    OK(st_open(path, NULL, &checkpoint, &err));
    CHECK(st_shard_len(checkpoint) == SHARDS);
    unsigned long long reads;
    unsigned at_once;
    reads_so_far(&reads, &at_once);
    /* The first shard, and then the others together; one request each. */
    CHECK(reads == SHARDS && at_once > 1);
    st_close(checkpoint);
    unmount();
}

static void bandwidth_is_shared(void) {
    serve("bandwidth=100");
    load_by_each_engine();
    stop_serving();
}

static void bytes_that_cannot_be_read(void) {
    static const size_t tensors[] = {L_MATRIX, L_LARGE, L_ROWS};
    for (size_t t = 0; t < LEN(tensors); t++) {
        char options[256];
        st_tensor info;
        st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
        OK(st_tensor_info(checkpoint, tensors[t], &info, &err));
        st_close(checkpoint);
        const unsigned long long from = info.file_offset + info.nbytes / 2;
        snprintf(options, sizeof(options), "eio_file=model.safetensors,eio_from=%llu,eio_to=%llu", from, from + 10);
        serve(options);
        for (size_t e = 0; e < LEN(loading_engines); e++) {
            const st_load_options by = loading_by(loading_engines[e]);
            loading_start(&it, &by);
            loading_drain(&it);
            CHECK(it.failed == 1 && it.status[tensors[t]] == ST_ERR_IO);
            st_load_free(it.load);
            it.load = NULL;
        }
        stop_serving();
    }
}

/* Which end anywhere, also where no page does. */
static void reads_are_short(void) {
    static const char *const ways[] = {"short=70000,direct_io", "short=4096,direct_io", "short=5001,direct_io"};
    for (size_t i = 0; i < LEN(ways); i++) {
        serve(ways[i]);
        load_by_each_engine();
        stop_serving();
    }
}

static void the_way_around_the_page_cache_is_closed(void) {
    serve("refuse_direct");
    load_by_each_engine();
    CHECK(it.engines == ST_ENGINE_BUFFERED);
    stop_serving();
}

/* Ended in the middle of slow reads: it waits for those, and for no others. */
static void ends_in_the_middle(void) {
    serve("latency_us=50000");
    const size_t threads = test_entries("/proc/self/task");
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (int cancel = 0; cancel < 2; cancel++) {
            const st_load_options options = loading_by(loading_engines[e]);
            loading_start(&it, &options);
            st_loaded loaded;
            loading_next(&it, 20, &loaded);
            if (cancel) {
                st_load_cancel(it.load);
                CHECK(loading_next(&it, -1, &loaded) == ST_ERR_CANCELLED);
            }
            st_load_free(it.load);
            it.load = NULL;
            test_threads_end(threads);
        }
    stop_serving();
}

/* As when a network goes: what was read is right, the rest fails, and nobody waits for ever. */
static void the_server_dies(void) {
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        serve("latency_us=2000,bandwidth=50");
        st_load_options options = loading_by(loading_engines[e]);
        options.block_bytes = 64 << 10;
        loading_start(&it, &options);
        st_loaded loaded;
        CHECK(loading_next(&it, -1, &loaded) == ST_OK);
        loading_recycle(&it, &loaded);
        kill(server, SIGKILL);
        loading_drain(&it);
        for (size_t i = 0; i < L_LEN; i++)
            CHECK(it.status[i] == ST_OK || it.status[i] == ST_ERR_IO);
        st_load_free(it.load);
        it.load = NULL;
        stop_serving();
    }
}

static const test_case cases[] = {
    CASE(what_is_served_is_loaded),
    CASE(latency_is_hidden_by_reading_at_once),
    CASE(shards_are_opened_at_once),
    CASE(bandwidth_is_shared),
    CASE(bytes_that_cannot_be_read),
    CASE(reads_are_short),
    CASE(the_way_around_the_page_cache_is_closed),
    CASE(ends_in_the_middle),
    CASE(the_server_dies),
};
TEST_MAIN(cases)
