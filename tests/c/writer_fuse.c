/* Writing to file systems that lack things, as mounts of object stores and of other systems' disks do: tests/fuse/odd_fs.c. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SMALL = 3000, LARGE = 17 << 20, SUMS = ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3 };

static pid_t server;
static char mountpoint[512], path[600];

static void unmount(void) {
    if (!server)
        return;
    kill(server, SIGTERM);
    waitpid(server, NULL, 0);
    umount2(mountpoint, MNT_DETACH);
    server = 0;
}

static bool is_mounted(void) {
    struct stat here, above;
    CHECK(stat(fixture_path(""), &above) == 0);
    return stat(mountpoint, &here) == 0 && here.st_dev != above.st_dev;
}

/* Mounts an empty folder with these options. */
static void mount_odd(const char *options) {
    static bool registered;
    const char *program = test_setting("ST_TEST_ODD_FS");
    if (!program)
        SKIP("there is no libfuse3 here");
    if (access("/dev/fuse", R_OK | W_OK) != 0)
        SKIP("/dev/fuse is not to be had");
    if (geteuid() != 0)
        SKIP("only root mounts and unmounts without help");
    char folder[512];
    strcpy(folder, fixture_path("kept"));
    strcpy(mountpoint, fixture_path("mounted"));
    CHECK(mkdir(folder, 0755) == 0 || errno == EEXIST);
    CHECK(mkdir(mountpoint, 0755) == 0 || errno == EEXIST);
    fixture_empty(fixture_path("kept/any"));
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
    for (int i = 0; i < 1000 && !is_mounted(); i++) {
        usleep(10000);
        if (waitpid(server, NULL, WNOHANG) != 0) {
            server = 0;
            SKIP("nothing can be mounted here");
        }
    }
    CHECK(is_mounted());
    snprintf(path, sizeof(path), "%s/model.safetensors", mountpoint);
}

/* Two saves of each kind, each in the place of every other. */
static const fixture_generation saves[] = {
    {1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 0, SUMS, 0},          {3, 4, SMALL, 2, 0, 0},
    {4, 2, SMALL, 2, SUMS, 0}, {5, 6, SMALL, 3, 0, 2}, {6, 2, SMALL, 0, 0, 2},
};

static void save_each_over_each(void) {
    for (size_t first = 0; first < LEN(saves); first++)
        for (size_t second = 0; second < LEN(saves); second++) {
            fixture_put(path, &saves[first]);
            CHECK(fixture_found(path, saves, LEN(saves)) == &saves[first]);
            fixture_put(path, &saves[second]);
            CHECK(fixture_found(path, saves, LEN(saves)) == &saves[second]);
            CHECK(fixture_found_at(mountpoint, saves, LEN(saves)) == &saves[second]);
            fixture_only(path, &saves[second]);
        }
}

static void works_with(const char *options) {
    mount_odd(options);
    save_each_over_each();
    unmount();
}

static void mounts_without_anything_odd(void) {
    works_with("");
}

static const char *with_errno(const char *options, int os_error) {
    static char text[256];
    snprintf(text, sizeof(text), "%s,os_error=%d", options, os_error);
    return text;
}

static const int refusals[] = {EPERM, ENOSYS, EOPNOTSUPP, EINVAL};

static void mounts_without_hard_links(void) {
    for (size_t i = 0; i < LEN(refusals); i++)
        works_with(with_errno("refuse=link", refusals[i]));
}

static void mounts_without_locks_or_preallocation(void) {
    for (size_t i = 0; i < LEN(refusals); i++)
        works_with(with_errno("refuse=flock:fallocate:chmod:truncate", refusals[i]));
}

static void mounts_that_need_not_sync(void) {
    works_with(with_errno("refuse=fsync:fsyncdir:flush", ENOSYS));
    works_with(with_errno("refuse=fsync:fsyncdir", EINVAL));
}

/* All at once, as object stores are. */
static void mounts_that_only_append(void) {
    works_with(with_errno("append_only,refuse=link:flock:chmod:fsync:fsyncdir", ENOSYS));
    if (test_is_instrumented())
        return;
    mount_odd("append_only");
    const fixture_generation large[] = {{1, 2, LARGE, 0, SUMS, 0}, {2, 2, LARGE, 2, 0, 0}, {3, 2, LARGE, 0, 0, 2}};
    for (size_t i = 0; i < LEN(large); i++) {
        fixture_put(path, &large[i]);
        CHECK(fixture_found(path, large, LEN(large)) == &large[i]);
    }
    /* In turns, and with checksums that lie before what they are of: neither can be. */
    const fixture_generation impossible[] = {{4, 4, SMALL, 0, 0, 1}, {5, 2, SMALL, 0, SUMS, 2}};
    for (size_t i = 0; i < LEN(impossible); i++) {
        fixture_writing writing = {&impossible[i], path, NULL, NULL, 0, 0, 0};
        CHECK(fixture_go_on(&writing, &err) != ST_OK);
        SAYS("order");
        st_writer_abort(writing.writer);
        CHECK(fixture_found(path, large, LEN(large)) == &large[2]);
        fixture_only(path, &large[2]);
    }
    unmount();
}

static void refused_because(const char *options, int os_error, const char *says) {
    mount_odd(options);
    for (size_t i = 0; i < LEN(saves); i++) {
        fixture_writing writing = {&saves[i], path, NULL, NULL, 0, 0, 0};
        FAILS(ST_ERR_IO, fixture_go_on(&writing, &err));
        CHECK(err.os_error == os_error);
        SAYS(says);
        st_writer_abort(writing.writer);
        CHECK(test_entries(mountpoint) == 2);
    }
    unmount();
}

static void mounts_that_cannot_replace_files(void) {
    for (size_t i = 0; i < LEN(refusals); i++)
        refused_because(with_errno("refuse=rename", refusals[i]), refusals[i], "does not let a file be replaced atomically");
}

/* An upload that fails when the file is closed, which is not to be taken for a checkpoint. */
static void errors_that_come_when_a_file_is_closed(void) {
    const int os_errors[] = {EIO, ENOSPC, EDQUOT};
    for (size_t i = 0; i < LEN(os_errors); i++)
        refused_because(with_errno("refuse=flush", os_errors[i]), os_errors[i], "cannot close");
}

static const test_case cases[] = {
    CASE(mounts_without_anything_odd),
    CASE(mounts_without_hard_links),
    CASE(mounts_without_locks_or_preallocation),
    CASE(mounts_that_need_not_sync),
    CASE(mounts_that_only_append),
    CASE(mounts_that_cannot_replace_files),
    CASE(errors_that_come_when_a_file_is_closed),
};

TEST_MAIN(cases)
