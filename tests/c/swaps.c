/*
 * Directory entries that are swapped, again and again, while st_open runs: whatever it finds, no file outside of the checkpoint's
 * directory is opened. Each case runs for some time as the kernel resolves names (openat2), and as they are walked where it does not.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "refusing.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

enum { SECONDS = 2, INSIDE = 'i', OUTSIDE = 'O' };

/* A shard of one tensor "a" of one byte. */
static void write_shard(const char *path, unsigned char byte) {
    const fixture_tensor tensor = {"a", "U8", "[1]", 1, &byte};
    const fixture file = {&tensor, 1, NULL, 0};
    size_t len;
    unsigned char *bytes = fixture_bytes(&file, &len);
    fixture_write_bytes(path, bytes, len);
    free(bytes);
}

static void write_index(const char *path, const char *tensor, const char *shard) {
    char text[200];
    const int len = snprintf(text, sizeof(text), "{\"weight_map\":{\"%s\":\"%s\"}}", tensor, shard);
    CHECK(len > 0 && len < (int)sizeof(text));
    fixture_write_bytes(path, text, (size_t)len);
}

/* --- who swaps ------------------------------------------------------------------------------------------------------ */

static struct {
    char one[512], other[512];
    atomic_bool stop;
    atomic_long swaps;
} swapping;

static int swap_once(void) {
    return (int)syscall(SYS_renameat2, AT_FDCWD, swapping.one, AT_FDCWD, swapping.other, RENAME_EXCHANGE);
}

static void *swap(void *argument) {
    while (!swapping.stop)
        swapping.swaps += swap_once() == 0;
    return argument;
}

/* --- who opens ------------------------------------------------------------------------------------------------------ */

static char opened[512];
static struct {
    long tries, inside, refused;
} outcomes;

/* What may come of it: the file inside, or an error that does not know what lies outside. */
static void open_once(void) {
    st_checkpoint *checkpoint;
    const st_status status = st_open(opened, NULL, &checkpoint, &err);
    outcomes.tries++;
    if (status == ST_OK) {
        unsigned char byte = 0;
        OK(st_tensor_read(checkpoint, 0, NULL, 0, &byte, 1, &err));
        CHECK(byte != OUTSIDE);
        CHECK(byte == INSIDE);
        st_close(checkpoint);
        outcomes.inside++;
        return;
    }
    CHECK(!strstr(err.message, "outside_marker"));
    CHECK(status == ST_ERR_SHARD_OUTSIDE || status == ST_ERR_SHARD_MISSING || status == ST_ERR_FOLDER_EMPTY ||
          (status == ST_ERR_IO && (err.os_error == ELOOP || err.os_error == EAGAIN)));
    outcomes.refused += status == ST_ERR_SHARD_OUTSIDE;
}

static void open_while_entries_are_swapped(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, swap, NULL) == 0);
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (int i = 0; i < 50; i++)
            open_once();
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < SECONDS || outcomes.inside == 0 || outcomes.refused == 0);
    swapping.stop = true;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(swapping.swaps > 0);
}

/* Exchanges what `one` and `other`, seen from the temporary folder, lead to, and opens `path`. */
static void race(const char *path, const char *one, const char *other) {
    if (test_is_instrumented())
        SKIP("takes long");
    strcpy(opened, fixture_path(path));
    strcpy(swapping.one, fixture_path(one));
    strcpy(swapping.other, fixture_path(other));
    if (swap_once() != 0)
        SKIP("this file system does not exchange entries");
    CHECK(swap_once() == 0);
    CHECK(test_in_child(open_while_entries_are_swapped) == 0);
    refusing_in_child(SYS_openat2, ENOSYS, open_while_entries_are_swapped);
}

/* --- what is swapped -------------------------------------------------------------------------------------------------- */

static void make(const char *folder) {
    CHECK(mkdir(fixture_path(folder), 0755) == 0);
}

static void link_to(const char *target, const char *link) {
    CHECK(symlink(target, fixture_path(link)) == 0);
}

/* A shard in a directory below the index's, which becomes a link. */
static void an_inner_directory(void) {
    make("inner");
    make("inner/model");
    make("inner/model/sub");
    make("inner/out");
    write_index(fixture_path("inner/model/m.safetensors.index.json"), "a", "sub/a.safetensors");
    write_shard(fixture_path("inner/model/sub/a.safetensors"), INSIDE);
    write_shard(fixture_path("inner/out/a.safetensors"), OUTSIDE);
    link_to("../out", "inner/model/.other");
    race("inner/model", "inner/model/sub", "inner/model/.other");
}

static void a_shard(void) {
    make("shard");
    make("shard/model");
    write_index(fixture_path("shard/model/m.safetensors.index.json"), "a", "a.safetensors");
    write_shard(fixture_path("shard/model/a.safetensors"), INSIDE);
    write_shard(fixture_path("shard/outside"), OUTSIDE);
    link_to("../outside", "shard/model/.other");
    race("shard/model", "shard/model/a.safetensors", "shard/model/.other");
}

static void the_index(void) {
    make("index");
    make("index/model");
    write_index(fixture_path("index/model/m.safetensors.index.json"), "a", "a.safetensors");
    write_shard(fixture_path("index/model/a.safetensors"), INSIDE);
    write_index(fixture_path("index/outside.json"), "outside_marker", "outside_marker.safetensors");
    link_to("../outside.json", "index/model/.other");
    race("index/model", "index/model/m.safetensors.index.json", "index/model/.other");
}

/* The only file of a directory, which has no index. */
static void the_only_file(void) {
    make("only");
    make("only/model");
    write_shard(fixture_path("only/model/a.safetensors"), INSIDE);
    write_shard(fixture_path("only/outside"), OUTSIDE);
    link_to("../outside", "only/model/.other");
    race("only/model", "only/model/a.safetensors", "only/model/.other");
}

/* A link that leads into the store of a Hugging Face cache, and one that leads past it. */
static void a_link_into_a_store(void) {
    make("cache");
    make("cache/blobs");
    make("cache/snapshots");
    make("cache/snapshots/0123");
    write_shard(fixture_path("cache/blobs/f00d"), INSIDE);
    write_shard(fixture_path("cache/outside"), OUTSIDE);
    link_to("../../blobs/f00d", "cache/snapshots/0123/a.safetensors");
    link_to("../../outside", "cache/snapshots/0123/.other");
    race("cache/snapshots/0123", "cache/snapshots/0123/a.safetensors", "cache/snapshots/0123/.other");
}

/* The file in the store itself. */
static void a_file_of_a_store(void) {
    make("store");
    make("store/blobs");
    make("store/snapshots");
    make("store/snapshots/0123");
    write_shard(fixture_path("store/blobs/f00d"), INSIDE);
    write_shard(fixture_path("store/outside"), OUTSIDE);
    link_to("../../blobs/f00d", "store/snapshots/0123/a.safetensors");
    link_to("../outside", "store/blobs/.other");
    race("store/snapshots/0123", "store/blobs/f00d", "store/blobs/.other");
}

static const test_case cases[] = {
    CASE(an_inner_directory),
    CASE(a_shard),
    CASE(the_index),
    CASE(the_only_file),
    CASE(a_link_into_a_store),
    CASE(a_file_of_a_store),
};

TEST_MAIN(cases)
