/* Writers that are killed while they replace a checkpoint: whoever opens it finds the old one or the new one, and all of it. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SMALL = 3000, LARGE = 17 << 20 };

/* A number below limit: nothing that needs good ones. */
static uint64_t random_below(uint64_t limit) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? state % limit : 0;
}

static uint64_t microseconds(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int rounds(int n) {
    return test_is_instrumented() ? n / 20 + 1 : n;
}

/* Puts one generation in the place of the other, again and again, until it is killed. */
static pid_t start_child(const char *path, const fixture_generation two[2]) {
    fflush(NULL);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int n = 1;; n++)
        fixture_put(path, &two[n % 2]);
}

static void kill_again_and_again(const char *path, const fixture_generation two[2], int n) {
    fixture_put_quickly(path, &two[1]);
    fixture_put_quickly(path, &two[0]);
    const uint64_t started = microseconds();
    fixture_put(path, &two[1]);
    fixture_put(path, &two[0]);
    const uint64_t both = microseconds() - started;
    int found[2] = {0, 0};
    for (int i = 0; i < rounds(n); i++) {
        const pid_t child = start_child(path, two);
        const uint64_t pause = random_below(both + both / 4);
        nanosleep(&(struct timespec){(time_t)(pause / 1000000), (long)(pause % 1000000) * 1000}, NULL);
        CHECK(kill(child, SIGKILL) == 0);
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        found[fixture_found(path, two, 2) - two]++;
        /* Shards that had their names, but not yet their index, are those of a checkpoint with as many. */
        if (two[0].shards != two[1].shards)
            fixture_put_quickly(path, &two[1]);
        fixture_put_quickly(path, &two[0]);
        CHECK(fixture_found(path, two, 2) == &two[0]);
        fixture_only(path, &two[0]);
    }
    printf("    found the first %d times, the second %d times\n", found[0], found[1]);
}

/* Added and streamed, waiting for the disk or not. */
static void kill_in_each_way(const char *folder, fixture_generation one, fixture_generation other, int n) {
    const char *path = fixture_model_in(folder);
    for (int way = 0; way < 4; way++) {
        fixture_generation two[2] = {one, other};
        for (int i = 0; i < 2; i++) {
            two[i].streamed = way & 1;
            two[i].flags |= way & 2 ? ST_WRITE_NO_SYNC : 0;
        }
        kill_again_and_again(path, two, n / 4);
    }
}

static void kill_while_a_file_is_replaced(void) {
    const fixture_generation one = {1, 3, SMALL, 0, 0, 0}, other = {2, 5, SMALL / 2, 0, ST_WRITE_BLAKE3, 0};
    kill_in_each_way("file", one, other, 200);
}

/* Large enough for threads, and writes around the page cache. */
static void kill_while_a_large_file_is_replaced(void) {
    if (test_is_instrumented())
        SKIP("writes too much");
    const fixture_generation one = {1, 2, LARGE, 0, 0, 0}, other = {2, 2, LARGE + 1, 0, 0, 0};
    kill_in_each_way("large", one, other, 12);
}

static void kill_while_shards_are_replaced_by_namesakes(void) {
    const fixture_generation one = {1, 6, SMALL, 3, 0, 0}, other = {2, 3, SMALL, 3, ST_WRITE_CRC, 0};
    kill_in_each_way("namesakes", one, other, 60);
}

static void kill_while_shards_are_replaced_by_others(void) {
    const fixture_generation one = {1, 6, SMALL, 3, 0, 0}, other = {2, 6, SMALL, 2, 0, 0};
    kill_in_each_way("others", one, other, 60);
}

/* Whatever there is opens as one of these: by the path, by the index and by the folder. */
static void found_by_each(const char *path, const fixture_generation *generations, size_t len) {
    char index[512], folder[512];
    snprintf(index, sizeof(index), "%s.index.json", path);
    snprintf(folder, sizeof(folder), "%.*s", (int)(strrchr(path, '/') - path), path);
    const bool has_file = access(path, F_OK) == 0, has_index = access(index, F_OK) == 0;
    CHECK(has_file || has_index);
    if (has_file)
        fixture_found_at(path, generations, len);
    if (has_index)
        fixture_found_at(index, generations, len);
    fixture_found_at(folder, generations, len);
}

/* A file, by writers that could have written several and that could not, and shards, in any order. No two have as many tensors, so that
 * none opens by another's index. */
static const fixture_generation any[] = {
    {1, 1, SMALL, 0, ST_WRITE_NO_SYNC, 0}, {2, 2, SMALL, 1, ST_WRITE_NO_SYNC, 0}, {3, 6, SMALL, 3, ST_WRITE_NO_SYNC, 0},
    {4, 4, SMALL, 2, ST_WRITE_NO_SYNC, 0}, {5, 9, SMALL, 3, ST_WRITE_NO_SYNC, 0},
};

static void write_any(const char *path, unsigned first) {
    for (unsigned n = first;; n = n * 1103515245 + 12345)
        fixture_put(path, &any[(n >> 16) % LEN(any)]);
}

/* An index that names the file itself, as some repositories have it. */
static void name_by_index(const char *path, const fixture_generation *generation) {
    char text[512] = "{\"weight_map\": {";
    for (size_t i = 0; i < generation->tensors; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s\"t%zu\": \"model.safetensors\"", i ? ", " : "", i);
    strcat(text, "}}");
    char index[512];
    snprintf(index, sizeof(index), "%s.index.json", path);
    fixture_write_bytes(index, text, strlen(text));
}

/* Nobody tidies up between two crashes. */
static void kill_again_and_again_whatever_is_written(void) {
    const char *path = fixture_model_in("chain");
    fixture_put_quickly(path, &any[0]);
    for (int i = 0; i < rounds(200); i++) {
        fflush(NULL);
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            write_any(path, (unsigned)i * 7919);
        }
        nanosleep(&(struct timespec){0, (long)random_below(8000) * 1000}, NULL);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
        found_by_each(path, any, LEN(any));
        if (i % 8 == 7) {
            const fixture_generation *one = &any[i / 8 % 2];
            fixture_put(path, one);
            fixture_only(path, one);
            if (i % 16 == 7)
                name_by_index(path, one);
            found_by_each(path, any, LEN(any));
        }
    }
    for (size_t i = 0; i < LEN(any); i++) {
        fixture_put(path, &any[i]);
        fixture_only(path, &any[i]);
    }
}

static const test_case cases[] = {
    CASE(kill_while_a_file_is_replaced),
    CASE(kill_while_a_large_file_is_replaced),
    CASE(kill_while_shards_are_replaced_by_namesakes),
    CASE(kill_while_shards_are_replaced_by_others),
    CASE(kill_again_and_again_whatever_is_written),
};

TEST_MAIN(cases)
