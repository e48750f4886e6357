/* Loading where the system refuses things in earnest: filters of system calls, limits, signals, file systems. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_ALLOWED = 77, URING_SETUP = 425, URING_ENTER = 426, URING_REGISTER = 427, CACHESTAT = 451, MIB = 1 << 20 };

/* The model, open before anything is refused; and loads of it by each engine, which must be right. */
static st_checkpoint *checkpoint;
static uint32_t engines_of[5];

static void load_by_each_engine(void) {
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading_start(&it, &options);
        loading_end(&it);
        engines_of[e] = it.engines;
    }
    loading_free(&it);
}

static void (*run_in_child)(void);

/* valgrind looks for leaks in the child, too, and pointers to the middle of what is open are not enough for it. */
static void run_and_close(void) {
    run_in_child();
    st_close(checkpoint);
}

/* Calls a function in a child, with the checkpoint open, which both close. Gives the wait status. */
static int with_checkpoint(void (*run)(void)) {
    run_in_child = run;
    const int status = test_in_child(run_and_close);
    st_close(checkpoint);
    return status;
}

/* The same with the model. The child ends with NOT_ALLOWED where it may not do what it has to. */
static void in_child(void (*run)(void)) {
    checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    const int status = with_checkpoint(run);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_ALLOWED)
        SKIP("not allowed here");
    CHECK(status == 0);
}

/* --- filters of system calls -------------------------------------------------------------------------------------- */

/* From now on this process has no such call, as in many a container. */
static void refuse(unsigned number, unsigned os_error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | os_error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {LEN(filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(NOT_ALLOWED);
}

static struct {
    unsigned number, os_error;
} refused;

static void load_with_a_call_refused(void) {
    refuse(refused.number, refused.os_error);
    load_by_each_engine();
    const bool needs_ring = refused.number == URING_SETUP || refused.number == URING_ENTER;
    for (size_t e = 0; e < LEN(loading_engines); e++)
        CHECK(!needs_ring || !(engines_of[e] & ST_ENGINE_URING));
    /* What takes its place is the next best. */
    for (size_t e = 0; e < LEN(loading_engines); e++)
        if (needs_ring && loading_engines[e] == ST_ENGINE_URING)
            CHECK(engines_of[e] == (uint32_t)loading_engine_here(ST_ENGINE_DIRECT));
}

static void load_with_each_refused(const unsigned *numbers, size_t len) {
    static const unsigned os_errors[] = {EPERM, ENOSYS};
    if (test_is_instrumented())
        SKIP("what watches this process needs the calls");
    for (size_t i = 0; i < len; i++)
        for (size_t k = 0; k < LEN(os_errors); k++) {
            refused.number = numbers[i];
            refused.os_error = os_errors[k];
            in_child(load_with_a_call_refused);
        }
}

static void io_uring_is_forbidden(void) {
    load_with_each_refused((const unsigned[]){URING_SETUP, URING_ENTER, URING_REGISTER}, 3);
}

static void other_calls_are_forbidden(void) {
    static const unsigned numbers[] = {CACHESTAT,   SYS_preadv2,           SYS_preadv,  SYS_mincore, SYS_fadvise64,
                                       SYS_fstatfs, SYS_sched_getaffinity, SYS_madvise, SYS_mlock,   SYS_mbind};
    load_with_each_refused(numbers, LEN(numbers));
}

/* --- limits ------------------------------------------------------------------------------------------------------- */

static void limit(int resource, rlim_t to) {
    const struct rlimit limits = {to, to};
    CHECK(setrlimit((__rlimit_resource_t)resource, &limits) == 0);
}

static void load_without_locked_memory(void) {
    limit(RLIMIT_MEMLOCK, 0);
    test_become_nobody();
    load_by_each_engine();
}

static void no_memory_may_be_locked(void) {
    in_child(load_without_locked_memory);
}

/* The file was opened by somebody who may read it. */
static void load_what_cannot_be_opened_again(void) {
    test_become_nobody();
    load_by_each_engine();
}

static void files_that_cannot_be_opened_again(void) {
    const char *path = fixture_write("private.safetensors", &loading_model);
    CHECK(chmod(path, 0) == 0);
    checkpoint = NULL;
    if (geteuid() != 0)
        CHECK(chmod(path, 0400) == 0);
    checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    CHECK(chmod(path, 0) == 0);
    CHECK(with_checkpoint(load_what_cannot_be_opened_again) == 0);
}

static void load_without_descriptors(void) {
    /* What has been opened so far is below the number of the next one. */
    const int next = dup(0);
    CHECK(next >= 0 && close(next) == 0);
    limit(RLIMIT_NOFILE, (rlim_t)next);
    CHECK(dup(0) < 0 && errno == EMFILE);
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        const st_load_options options = loading_by(loading_engines[e]);
        loading_start(&it, &options);
        loading_end(&it);
        CHECK(it.engines == ST_ENGINE_BUFFERED);
    }
    loading_free(&it);
}

static void no_descriptor_is_left(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers need descriptors");
    in_child(load_without_descriptors);
}

static rlim_t most_threads;

static void load_with_few_threads(void) {
    limit(RLIMIT_NPROC, most_threads);
    test_become_nobody();
    st_request requests[L_LEN];
    loading it = loading_of(checkpoint, requests, loading_whole(checkpoint, requests, L_LEN));
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        st_load_options options = loading_by(loading_engines[e]);
        options.workers = 8;
        options.block_bytes = 64 << 10;
        const st_status status = loading_try(&it, &options);
        CHECK(status == ST_OK || status == ST_ERR_NO_MEMORY);
        if (status == ST_OK)
            loading_end(&it);
    }
    loading_free(&it);
}

static void few_threads_can_be_had(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers may need threads");
    for (most_threads = 0; most_threads < 5; most_threads++)
        in_child(load_with_few_threads);
}

/* Far more than there is room for. */
static void load_without_memory(void) {
    limit(RLIMIT_AS, 100 * (rlim_t)MIB);
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    const st_request staged = {0, NULL, 0, NULL, 0, 0};
    st_load *load;
    FAILS(ST_ERR_NO_MEMORY, st_load_start(checkpoint, &staged, 1, &options, &load, &err));
    CHECK(!load);
    /* With less it is possible. */
    options.staging_bytes = MIB;
    st_loaded loaded;
    OK(st_load_start(checkpoint, &staged, 1, &options, &load, &err));
    OK(st_load_next(load, -1, &loaded, &err));
    for (size_t i = 0; i < loaded.nbytes; i++)
        CHECK(((unsigned char *)loaded.data)[i] == 0);
    st_load_free(load);
}

static void there_is_no_memory_for_staging(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers need memory");
    /* A sparse file of one tensor of 1 GiB. */
    static const char header[] = "{\"t\":{\"dtype\":\"U8\",\"shape\":[1073741824],\"data_offsets\":[0,1073741824]}}";
    const uint64_t len = sizeof(header) - 1;
    const char *path = fixture_path("sparse.safetensors");
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(&len, 8, 1, file) == 1 && fwrite(header, len, 1, file) == 1 && fclose(file) == 0);
    CHECK(truncate(path, (off_t)(8 + len) + (1 << 30)) == 0);
    checkpoint = fixture_open_path(path, ST_STORAGE_READ, 0);
    CHECK(with_checkpoint(load_without_memory) == 0);
}

/* --- signals ------------------------------------------------------------------------------------------------------ */

static atomic_int signals, strangers;
static pid_t main_thread;

static void count_signal(int signal) {
    (void)signal;
    signals++;
    strangers += (pid_t)syscall(SYS_gettid) != main_thread;
}

/* A thousand times a second, and no call goes on by itself. */
static void signals_come_all_the_time(void) {
    /* Under valgrind the next one would come before the last is dealt with, for ever. */
    const int pause_us = test_is_instrumented() ? 20000 : 1000;
    const struct itimerval often = {{0, pause_us}, {0, pause_us}}, never = {{0, 0}, {0, 0}};
    struct sigaction action = {0};
    action.sa_handler = count_signal;
    main_thread = (pid_t)syscall(SYS_gettid);
    signals = strangers = 0;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    for (int round = 0; round < 200 && (round < 5 || signals < 50); round++)
        load_by_each_engine();
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    st_close(checkpoint);
    CHECK(signals > 0 && strangers == 0);
}

/* --- file systems ------------------------------------------------------------------------------------------------- */

static void memory_file_systems(void) {
    static const char folder[] = "/dev/shm";
    enum { TMPFS = 0x01021994 };
    struct statfs system;
    char path[64];
    snprintf(path, sizeof(path), "%s/st_test.%d", folder, (int)getpid());
    const bool is_tmpfs = statfs(folder, &system) == 0 && system.f_type == TMPFS;
    const int fd = is_tmpfs ? open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        SKIP("no tmpfs here to write to");
    size_t len;
    unsigned char *bytes = fixture_bytes(&loading_model, &len);
    CHECK(write(fd, bytes, len) == (ssize_t)len && close(fd) == 0);
    free(bytes);
    checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    CHECK(unlink(path) == 0);
    load_by_each_engine();
    CHECK(engines_of[0] == ST_ENGINE_BUFFERED);
    st_close(checkpoint);
}

/* Where descriptors cannot be opened again by their names, nor processors be counted by files. */
static void load_without_proc(void) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "", MS_REC | MS_PRIVATE, "") != 0 ||
        umount2("/proc", MNT_DETACH) != 0)
        _exit(NOT_ALLOWED);
    load_by_each_engine();
}

static void there_is_no_proc(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers look into /proc");
    in_child(load_without_proc);
}

static const test_case cases[] = {
    CASE(io_uring_is_forbidden),
    CASE(other_calls_are_forbidden),
    CASE(no_memory_may_be_locked),
    CASE(files_that_cannot_be_opened_again),
    CASE(no_descriptor_is_left),
    CASE(few_threads_can_be_had),
    CASE(there_is_no_memory_for_staging),
    CASE(signals_come_all_the_time),
    CASE(memory_file_systems),
    CASE(there_is_no_proc),
};
TEST_MAIN(cases)
