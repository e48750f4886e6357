/*
 * Models larger than memory may be: the most that a process has had in memory (VmHWM) while it walked over one with a budget, and what
 * becomes of it in a memory cgroup that has no room for more. The files are sparse: they take no room on the disk.
 */
#define _GNU_SOURCE

#include "residency.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { MIB = 1 << 20 };

/* A sparse model, and how a child walks over it. */
static struct {
    size_t shards, tensors; /* tensors of each shard */
    size_t nbytes;          /* of each tensor */
    size_t shift;           /* 1: none is aligned, so each needs a copy */
    int32_t storage;
    uint64_t budget;
    bool random, pointers, again; /* again: what is held is used some more */
    size_t most_mib; /* what VmHWM may grow by; 0: whatever */
    size_t least_mib;
    size_t out_of_budget; /* how many tensors there was no room for */
} walk;

static const char *folder(void) {
    return fixture_path("model");
}

static void write_shard(size_t number) {
    char name[64], *header;
    size_t len;
    FILE *text = open_memstream(&header, &len);
    CHECK(text);
    fprintf(text, "{");
    for (size_t i = 0; i < walk.tensors; i++)
        fprintf(text, "%s\"s%zu.t%zu\":{\"dtype\":\"U16\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}", i ? "," : "", number, i,
                walk.nbytes / 2, i * walk.nbytes, (i + 1) * walk.nbytes);
    fprintf(text, "}");
    while ((8 + (size_t)ftell(text)) % 4096 != walk.shift)
        fputc(' ', text);
    CHECK(fclose(text) == 0);
    snprintf(name, sizeof(name), "model/model-%05zu-of-%05zu.safetensors", number + 1, walk.shards);
    const char *path = fixture_path(name);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)len >> (8 * i));
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0 && write(fd, prefix, 8) == 8 && write(fd, header, len) == (ssize_t)len);
    free(header);
    const off_t size = (off_t)(8 + len + walk.tensors * walk.nbytes);
    if (ftruncate(fd, size) != 0)
        SKIP("no sparse files of this size here");
    close(fd);
}

static void write_model(void) {
    CHECK(mkdir(folder(), 0700) == 0 || errno == EEXIST);
    for (size_t i = 0; i < walk.shards; i++)
        write_shard(i);
}

/* The page cache goes with the files: this machine may need the memory. */
static void remove_model(void) {
    char name[64];
    for (size_t i = 0; i < walk.shards; i++) {
        snprintf(name, sizeof(name), "model/model-%05zu-of-%05zu.safetensors", i + 1, walk.shards);
        CHECK(unlink(fixture_path(name)) == 0);
    }
    CHECK(rmdir(folder()) == 0);
}

static size_t status_mib(const char *line) {
    char text[256], format[32];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    snprintf(format, sizeof(format), "%s: %%ld", line);
    while (fgets(text, sizeof(text), status))
        if (sscanf(text, format, &kib) == 1)
            break;
    fclose(status);
    CHECK(kib >= 0);
    return (size_t)kib / 1024;
}

/* Each tensor once: in the order of the file, or all over it. */
static size_t nth(size_t i, size_t len) {
    /* A prime that no number of tensors here is a multiple of. */
    return walk.random ? (i * 7919 + 5) % len : i;
}

static void touch_again(st_checkpoint *model, size_t index) {
    CHECK(touch(acquire(model, index), walk.nbytes) == 0);
    release(model, index);
}

static void walk_over(st_checkpoint *model) {
    const size_t len = st_len(model);
    CHECK(len == walk.shards * walk.tensors && len % 7919 != 0);
    walk.out_of_budget = 0;
    for (size_t i = 0; i < len; i++) {
        const void *data;
        size_t nbytes;
        const size_t index = nth(i, len);
        const st_status status = walk.pointers ? st_tensor_ptr(model, index, &data, &nbytes, &err)
                                               : st_acquire(model, index, &data, &nbytes, &err);
        walk.out_of_budget += status == ST_ERR_BUDGET;
        if (status == ST_ERR_BUDGET)
            continue;
        CHECK(status == ST_OK && nbytes == walk.nbytes);
        CHECK(touch(data, nbytes) == 0);
        if (!walk.pointers)
            release(model, index);
        /* Those held are used a second time, long after. */
        if (walk.again && i >= 500)
            for (size_t k = 1; k <= 4; k++)
                touch_again(model, nth(i - k * 100, len));
    }
}

static st_checkpoint *open_model(void) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = walk.storage;
    options.budget = walk.budget;
    st_checkpoint *model;
    OK(st_open(folder(), &options, &model, &err));
    return model;
}

static void measure(void) {
    st_checkpoint *model = open_model();
    const size_t before = status_mib("VmRSS");
    /* Sets VmHWM to what there is now. */
    FILE *reset = fopen("/proc/self/clear_refs", "w");
    if (reset) {
        fputs("5", reset);
        fclose(reset);
    }
    walk_over(model);
    const size_t peak = status_mib("VmHWM"), grown = peak > before ? peak - before : 0;
    const st_residency_info all = look(model, ST_ALL);
    printf("    %s, %s, %zu tensors of %zu KiB, a budget of %zu MiB: %zu MiB, charged %zu MiB\n",
           walk.storage == ST_STORAGE_READ ? "read" : walk.shift ? "mapped, misaligned" : "mapped",
           walk.random ? "all over the file" : "in order", st_len(model), walk.nbytes / 1024, (size_t)walk.budget / MIB, grown,
           (size_t)all.charged_bytes / MIB);
    CHECK(walk.budget == 0 || all.charged_bytes <= walk.budget);
    CHECK(walk.most_mib == 0 || grown <= walk.most_mib);
    CHECK(grown >= walk.least_mib);
    st_close(model);
}

/* A model of a GiB. With a budget of 64 MiB the process may have 64 MiB more than that; without one it has most of the model. */
enum { BUDGET_MIB = 64, SLACK_MIB = 64, MODEL_MIB = 1024 };

static void measure_walk(int32_t storage, uint64_t budget_mib, bool random, size_t least_mib, size_t most_mib) {
    walk.storage = storage;
    walk.budget = budget_mib * MIB;
    walk.random = random;
    walk.least_mib = least_mib;
    walk.most_mib = most_mib;
    CHECK(test_in_child(measure) == 0);
}

static void measure_tensors_of(size_t nbytes) {
    if (test_is_instrumented())
        SKIP("measures memory");
    const size_t most = BUDGET_MIB + SLACK_MIB, all = MODEL_MIB / 4 * 3;
    walk.shards = 4;
    walk.nbytes = nbytes;
    walk.tensors = (size_t)MODEL_MIB * MIB / walk.shards / nbytes;
    for (walk.shift = 0; walk.shift < 2; walk.shift++) {
        write_model();
        /* The first walk finds nothing in the page cache, the others find all. */
        measure_walk(ST_STORAGE_MMAP, BUDGET_MIB, false, 0, most);
        measure_walk(ST_STORAGE_MMAP, BUDGET_MIB, false, 0, most);
        measure_walk(ST_STORAGE_MMAP, BUDGET_MIB, true, 0, most);
        walk.again = true;
        measure_walk(ST_STORAGE_MMAP, BUDGET_MIB, true, 0, most);
        walk.again = false;
        measure_walk(ST_STORAGE_MMAP, 0, true, all, 0);
        if (walk.shift == 0) {
            measure_walk(ST_STORAGE_READ, BUDGET_MIB, false, 0, most);
            measure_walk(ST_STORAGE_READ, BUDGET_MIB, true, 0, most);
            measure_walk(ST_STORAGE_READ, 0, false, all, 0);
        }
        remove_model();
    }
}

static void large_tensors_stay_within_the_budget(void) {
    measure_tensors_of(8 * MIB - 4096);
}

/* The system maps more than is touched: that must not add up. */
static void small_tensors_stay_within_the_budget(void) {
    measure_tensors_of(50 * 1024);
}

static void tiny_tensors_stay_within_the_budget(void) {
    measure_tensors_of(8 * 1024);
}

/* A memory cgroup of our own: its folder. */
static char cgroup[128];
static pid_t owner;
enum { LIMIT_MIB = 64 };

static bool put(const char *name, const char *value) {
    char path[192];
    snprintf(path, sizeof(path), "%s/%s", cgroup, name);
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return false;
    const bool written = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
    close(fd);
    return written;
}

static void remove_cgroup(void) {
    if (getpid() != owner)
        return;
    /* Whoever was in it may still be on the way out. */
    for (int i = 0; cgroup[0] && i < 100 && rmdir(cgroup) != 0 && errno == EBUSY; i++)
        usleep(20000);
    cgroup[0] = 0;
}

static bool make_cgroup(void) {
    static const struct {
        const char *parent, *limit, *swap, *no_swap;
    } versions[] = {
        {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "67108864"},
        {"/sys/fs/cgroup", "memory.max", "memory.swap.max", "0"},
    };
    /* Also if the test fails half way. */
    owner = getpid();
    atexit(remove_cgroup);
    for (size_t i = 0; i < LEN(versions); i++) {
        snprintf(cgroup, sizeof(cgroup), "%s/st_test.%ld", versions[i].parent, (long)getpid());
        if (mkdir(cgroup, 0755) == 0) {
            const bool is_limited = put(versions[i].limit, "67108864");
            /* Where there is no account of swap there is nothing to be said about it. */
            put(versions[i].swap, versions[i].no_swap);
            if (is_limited)
                return true;
        }
        remove_cgroup();
    }
    return false;
}

static void (*run_inside)(void);

static void enter_and_run(void) {
    char pid[32];
    snprintf(pid, sizeof(pid), "%ld", (long)getpid());
    CHECK(put("cgroup.procs", pid));
    run_inside();
}

static int in_cgroup(void (*run)(void)) {
    run_inside = run;
    return test_in_child(enter_and_run);
}

static bool was_killed(int status) {
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void take_too_much(void) {
    const size_t size = (size_t)2 * LIMIT_MIB * MIB;
    char *memory = malloc(size);
    CHECK(memory);
    for (size_t i = 0; i < size; i += 512)
        *(volatile char *)(memory + i) = 1;
    free(memory);
}

static void walk_once(void) {
    st_checkpoint *model = open_model();
    const size_t len = st_len(model);
    walk_over(model);
    CHECK(walk.out_of_budget == (walk.pointers ? len - walk.budget / walk.nbytes : 0));
    st_close(model);
}

/* Eight times what there is room for, in copies and mapped. */
static void walk_in_a_cgroup(void) {
    if (test_is_instrumented())
        SKIP("limits memory");
    walk.shards = 2;
    walk.nbytes = 4 * MIB - 4096;
    walk.tensors = 64;
    if (!make_cgroup())
        SKIP("no memory cgroup can be made here");
    if (!was_killed(in_cgroup(take_too_much))) {
        remove_cgroup();
        SKIP("memory cgroups have no effect here");
    }
    int within[4] = {0}, pointers = 0, unbounded = 0;
    for (walk.shift = 0; walk.shift < 2; walk.shift++) {
        write_model();
        walk.storage = ST_STORAGE_MMAP;
        walk.budget = 24 * MIB;
        for (size_t random = 0; random < 2; random++) {
            walk.random = random;
            within[walk.shift * 2 + random] = in_cgroup(walk_once);
        }
        if (walk.shift) {
            /* Each pointer keeps a copy: the budget is the end of it, or the system is. */
            walk.pointers = true;
            pointers = in_cgroup(walk_once);
            walk.budget = 0;
            unbounded = in_cgroup(walk_once);
            walk.pointers = false;
        }
        remove_model();
    }
    remove_cgroup();
    for (size_t i = 0; i < LEN(within); i++)
        CHECK(within[i] == 0);
    CHECK(pointers == 0);
    /* Which is what a budget is for. */
    CHECK(was_killed(unbounded));
}

static const test_case cases[] = {
    CASE(large_tensors_stay_within_the_budget),
    CASE(small_tensors_stay_within_the_budget),
    CASE(tiny_tensors_stay_within_the_budget),
    CASE(walk_in_a_cgroup),
};

TEST_MAIN(cases)
