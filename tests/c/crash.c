/* Writers that are killed while they replace a checkpoint: whoever opens it finds the old one or the new one, and all of it. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <signal.h>
#include <stdio.h>
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

static void kill_while_shards_and_a_file_replace_each_other(void) {
    const fixture_generation one = {1, 4, SMALL, 1, 0, 0}, other = {2, 4, SMALL, 2, 0, 0};
    const char *path = fixture_model_in("both");
    const fixture_generation two[2] = {one, other};
    fixture_put_quickly(path, &one);
    for (int i = 0; i < rounds(20); i++) {
        const pid_t child = start_child(path, two);
        const uint64_t pause = random_below(30000);
        nanosleep(&(struct timespec){0, (long)pause * 1000}, NULL);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
        fixture_found(path, two, 2);
    }
    fixture_put_quickly(path, &other);
    fixture_put_quickly(path, &one);
    CHECK(fixture_found(path, two, 2) == &two[0]);
    fixture_only(path, &one);
}

static const test_case cases[] = {
    CASE(kill_while_a_file_is_replaced),
    CASE(kill_while_a_large_file_is_replaced),
    CASE(kill_while_shards_are_replaced_by_namesakes),
    CASE(kill_while_shards_are_replaced_by_others),
    CASE(kill_while_shards_and_a_file_replace_each_other),
};

TEST_MAIN(cases)
