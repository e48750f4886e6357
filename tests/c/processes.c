/* Several processes with one checkpoint: they share its pages. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 4, SHARD_COUNT = 2, TENSOR = 32 << 20, PAGE = 4096 };

static const char *const names[SHARD_COUNT] = {"large-1-of-2.safetensors", "large-2-of-2.safetensors"};

/* Two shards of a tensor each. */
static const char *write_large(void) {
    static const fixture_tensor tensors[SHARD_COUNT] = {{"first", "U8", "[33554432]", TENSOR, NULL},
                                                        {"second", "U8", "[33554432]", TENSOR, NULL}};
    const char *folder = fixture_path("large");
    CHECK(mkdir(folder, 0755) == 0);
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        const fixture one = {&tensors[i], 1, NULL, 0};
        char name[64];
        snprintf(name, sizeof(name), "large/%s", names[i]);
        fixture_write(name, &one);
    }
    return folder;
}

static void touch_all(st_checkpoint *checkpoint) {
    CHECK(st_len(checkpoint) == SHARD_COUNT);
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        const void *data;
        size_t nbytes;
        OK(st_tensor_ptr(checkpoint, i, &data, &nbytes, &err));
        CHECK(nbytes == TENSOR);
        for (size_t at = 0; at < nbytes; at += PAGE)
            CHECK(((const volatile unsigned char *)data)[at] == fixture_byte(at));
    }
}

/* A child that has touched everything and now holds it, until it is told to end. */
typedef struct child {
    pid_t id;
    int ready, end; /* pipes: it says that it is ready, and it ends when the other one is closed */
} child;

static child start_child(const char *folder) {
    int ready[2], end[2];
    CHECK(pipe(ready) == 0 && pipe(end) == 0);
    fflush(NULL);
    const child started = {fork(), ready[0], end[1]};
    CHECK(started.id >= 0);
    if (started.id > 0) {
        close(ready[1]);
        close(end[0]);
        return started;
    }
    close(end[1]);
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = ST_STORAGE_MMAP;
    st_checkpoint *checkpoint;
    OK(st_open(folder, &options, &checkpoint, &err));
    touch_all(checkpoint);
    char byte = 1;
    CHECK(write(ready[1], &byte, 1) == 1);
    CHECK(read(end[0], &byte, 1) == 0);
    touch_all(checkpoint);
    st_close(checkpoint);
    _exit(0);
}

/* In KiB, as smaps tells them. */
typedef struct usage {
    size_t mappings, size, rss, pss, private_clean, private_dirty, shared_dirty;
} usage;

static bool is_shard(const char *line) {
    for (size_t i = 0; i < SHARD_COUNT; i++)
        if (strstr(line, names[i]))
            return true;
    return false;
}

/* What the mappings of the shards cost a process. No mappings if the system does not tell. */
static usage usage_of(pid_t process) {
    char path[64], line[1024];
    usage sum = {0};
    const struct {
        const char *name;
        size_t *to;
    } fields[] = {{"Size:", &sum.size},
                  {"Rss:", &sum.rss},
                  {"Pss:", &sum.pss},
                  {"Private_Clean:", &sum.private_clean},
                  {"Private_Dirty:", &sum.private_dirty},
                  {"Shared_Dirty:", &sum.shared_dirty}};
    snprintf(path, sizeof(path), "/proc/%ld/smaps", (long)process);
    FILE *smaps = fopen(path, "r");
    if (!smaps)
        return sum;
    bool in_shard = false;
    while (fgets(line, sizeof(line), smaps)) {
        char field[64];
        size_t kib, start, stop;
        if (sscanf(line, "%zx-%zx ", &start, &stop) == 2) {
            in_shard = is_shard(line);
            sum.mappings += in_shard;
        } else if (in_shard && sscanf(line, "%63s %zu kB", field, &kib) == 2) {
            for (size_t i = 0; i < LEN(fields); i++)
                if (strcmp(field, fields[i].name) == 0)
                    *fields[i].to += kib;
        }
    }
    fclose(smaps);
    return sum;
}

static void pages_are_shared(void) {
    if (test_is_instrumented())
        SKIP("counts pages");
    const char *folder = write_large();
    child children[CHILDREN];
    usage used[CHILDREN];
    char byte;
    for (size_t i = 0; i < CHILDREN; i++)
        children[i] = start_child(folder);
    for (size_t i = 0; i < CHILDREN; i++)
        CHECK(read(children[i].ready, &byte, 1) == 1);
    /* All of them hold all of it now. */
    for (size_t i = 0; i < CHILDREN; i++)
        used[i] = usage_of(children[i].id);
    for (size_t i = 0; i < CHILDREN; i++)
        close(children[i].end);
    for (size_t i = 0; i < CHILDREN; i++) {
        int status;
        CHECK(waitpid(children[i].id, &status, 0) == children[i].id && status == 0);
        close(children[i].ready);
    }
    const size_t whole = (size_t)SHARD_COUNT * TENSOR / 1024;
    for (size_t i = 0; i < CHILDREN; i++) {
        if (used[i].mappings == 0 || used[i].pss == 0)
            SKIP("/proc/PID/smaps does not tell");
        printf("    size %zu, rss %zu, pss %zu, private %zu + %zu KiB\n", used[i].size, used[i].rss, used[i].pss,
               used[i].private_clean, used[i].private_dirty);
        CHECK(used[i].mappings == SHARD_COUNT);
        CHECK(used[i].rss >= whole && used[i].rss <= used[i].size);
        CHECK(used[i].pss >= whole / CHILDREN * 9 / 10 && used[i].pss <= whole / CHILDREN * 11 / 10);
        CHECK(used[i].private_clean == 0 && used[i].private_dirty == 0);
    }
}

static st_checkpoint *inherited;

static void sharded_is_right(st_checkpoint *checkpoint) {
    unsigned char bytes[16384];
    for (size_t i = 0; i < SHARDED_LEN; i++) {
        const fixture_part *part = &fixture_sharded[i];
        size_t index;
        const void *data;
        CHECK(st_find(checkpoint, part->name, &index) == ST_OK && index == i);
        OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
        CHECK(fixture_is(data, part->at, part->nbytes));
        OK(st_tensor_read(checkpoint, i, NULL, 0, bytes, sizeof(bytes), &err));
        CHECK(fixture_is(bytes, part->at, part->nbytes));
    }
}

static void use_in_child(void) {
    sharded_is_right(inherited);
    st_info info;
    CHECK(st_checkpoint_info(inherited, &info) == ST_OK);
    if (info.writable) {
        const void *data;
        OK(st_tensor_ptr(inherited, SHARDED_HEAD, &data, NULL, &err));
        memset((unsigned char *)data, 0xee, fixture_sharded[SHARDED_HEAD].nbytes);
    }
    st_close(inherited);
}

static void open_in_child(void) {
    st_checkpoint *own;
    OK(st_open(fixture_path("forked"), NULL, &own, &err));
    sharded_is_right(own);
    st_close(own);
    use_in_child();
}

/* Opened before the fork, used and closed in both, whoever is first; and what a child writes only it sees. */
static void handle_from_before_a_fork(void) {
    const char *folder = fixture_write_sharded("forked", 1);
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++)
        for (uint32_t flags = 0; flags <= ST_OPEN_COPY_ON_WRITE; flags++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.storage = storage;
            options.flags = flags;
            OK(st_open(folder, &options, &inherited, &err));
            CHECK(test_in_child(use_in_child) == 0);
            sharded_is_right(inherited);
            CHECK(test_in_child(open_in_child) == 0);
            sharded_is_right(inherited);
            st_close(inherited);
        }
}

/* The parent is gone before its child looks. */
static void handle_outlives_the_process_that_opened_it(void) {
    int said[2];
    CHECK(pipe(said) == 0);
    const char *folder = fixture_write_sharded("orphan", 1);
    fflush(NULL);
    const pid_t opener = fork();
    CHECK(opener >= 0);
    if (opener == 0) {
        OK(st_open(folder, NULL, &inherited, &err));
        int closed[2];
        CHECK(pipe(closed) == 0);
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child > 0) {
            st_close(inherited);
            _exit(0);
        }
        char byte = 1;
        close(closed[1]);
        /* Until the opener has ended. */
        CHECK(read(closed[0], &byte, 1) == 0);
        sharded_is_right(inherited);
        st_close(inherited);
        CHECK(write(said[1], &byte, 1) == 1);
        _exit(0);
    }
    close(said[1]);
    int status;
    char byte = 0;
    CHECK(waitpid(opener, &status, 0) == opener && status == 0);
    CHECK(read(said[0], &byte, 1) == 1 && byte == 1);
    close(said[0]);
}

/* The thread that reads ahead stays with the parent; the child starts one of its own, and ends it. */
static void fork_while_prefetching(void) {
    if (test_is_instrumented())
        SKIP("the child keeps what the thread used, which looks like a leak");
    const fixture_tensor large = {"large", "U8", "[67108864]", 64 << 20, NULL};
    const fixture one = {&large, 1, NULL, 0};
    const char *path = fixture_write("prefetched.safetensors", &one);
    for (int i = 0; i < 20; i++) {
        st_checkpoint *checkpoint = fixture_open_path(path, i % 2 ? ST_STORAGE_MMAP : ST_STORAGE_READ, 0);
        const size_t index = 0;
        for (int requests = 0; requests < 100; requests++)
            OK(st_prefetch(checkpoint, &index, 1, &err));
        fflush(NULL);
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(600);
            const st_range range = {1000, 1001};
            unsigned char byte;
            if (i % 3)
                OK(st_prefetch(checkpoint, &index, 1, &err));
            OK(st_tensor_read(checkpoint, 0, &range, 1, &byte, 1, &err));
            CHECK(byte == fixture_byte(1000));
            st_close(checkpoint);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        st_close(checkpoint);
    }
}

static const test_case cases[] = {
    CASE(pages_are_shared),
    CASE(handle_from_before_a_fork),
    CASE(fork_while_prefetching),
    CASE(handle_outlives_the_process_that_opened_it),
};

TEST_MAIN(cases)
