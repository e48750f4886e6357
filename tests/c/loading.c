#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static const fixture_tensor tensors[L_LEN] = {
    {"scalar", "I64", "[]", 8, NULL},
    {"empty", "F32", "[0,7]", 0, NULL},
    {"small", "U8", "[16]", 16, NULL},
    {"matrix", "BF16", "[300,256]", 300 * 512, NULL},
    {"large", "F32", "[1024,768]", 1024 * 768 * 4, NULL},
    {"cube", "U8", "[40,50,60]", 40 * 50 * 60, NULL},
    {"tail", "F64", "[1000]", 8000, NULL},
    {"byte", "U8", "[1]", 1, NULL},
    {"odd", "F32", "[70000]", 280000, NULL},
    {"rows", "U8", "[64,40000]", 64 * 40000, NULL},
    {"last", "I16", "[5]", 10, NULL},
};
const fixture loading_model = {tensors, L_LEN, NULL, 8};

const int32_t loading_engines[4] = {ST_ENGINE_AUTO, ST_ENGINE_BUFFERED, ST_ENGINE_DIRECT, ST_ENGINE_URING};
const int32_t loading_every_engine[5] = {ST_ENGINE_AUTO, ST_ENGINE_MEMORY, ST_ENGINE_BUFFERED, ST_ENGINE_DIRECT,
                                         ST_ENGINE_URING};

bool loading_fits(int32_t storage, int32_t engine) {
    return engine == ST_ENGINE_AUTO || (storage == ST_STORAGE_MEMORY) == (engine == ST_ENGINE_MEMORY);
}

/*
 * Whether the system says of a file that it cannot be read around the page cache: it knows the alignments for that, and they are 0.
 * (An emulator may say so of all files.) The fields have names since Linux 6.1 only.
 */
static bool is_said_to_have_no_direct(int fd) {
    enum { DIOALIGN = 0x2000, DIO_MEM_ALIGN = 152 };
    unsigned char stat[256] = {0};
    uint32_t mask, mem_align;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, stat) != 0)
        return false;
    memcpy(&mask, stat, sizeof(mask));
    memcpy(&mem_align, stat + DIO_MEM_ALIGN, sizeof(mem_align));
    return (mask & DIOALIGN) && mem_align == 0;
}

/* Whether a file of the temporary folder can be read around the page cache. */
static bool has_direct(void) {
    static void *page;
    const char *path = fixture_path("direct");
    if (!page) {
        CHECK(posix_memalign(&page, 4096, 4096) == 0);
        memset(page, 0, 4096);
    }
    fixture_write_bytes(path, page, 4096);
    const int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    const bool has = fd >= 0 && pread(fd, page, 4096, 0) == 4096 && !is_said_to_have_no_direct(fd);
    if (fd >= 0)
        close(fd);
    CHECK(remove(path) == 0);
    return has;
}

static bool has_uring(void) {
    enum { SETUP = 425 };
    unsigned char parameters[120] = {0};
    const long fd = syscall(SETUP, 4, parameters);
    if (fd >= 0)
        close((int)fd);
    return fd >= 0;
}

int32_t loading_engine_here(int32_t engine) {
    if (engine == ST_ENGINE_URING && !has_uring())
        engine = ST_ENGINE_DIRECT;
    if ((engine == ST_ENGINE_URING || engine == ST_ENGINE_DIRECT) && !has_direct())
        engine = ST_ENGINE_BUFFERED;
    return engine;
}

size_t loading_size(const st_checkpoint *checkpoint, const st_request *request) {
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, request->index, &tensor, &err));
    uint64_t elements = 1, wanted = 1;
    for (size_t d = 0; d < tensor.rank; d++) {
        elements *= tensor.shape[d];
        const bool whole = !request->ranges || d >= request->rank;
        const st_range *range = whole ? NULL : &request->ranges[d];
        const uint64_t stop = whole || range->stop == ST_END ? tensor.shape[d] : range->stop;
        wanted *= stop - (whole ? 0 : range->start);
    }
    return elements ? (size_t)(tensor.nbytes * wanted / elements) : 0;
}

size_t loading_whole(const st_checkpoint *checkpoint, st_request *out, size_t most) {
    const size_t n = st_len(checkpoint);
    CHECK(n <= most);
    for (size_t i = 0; i < n; i++)
        out[i] = (st_request){i, NULL, 0, NULL, 0, 1000 + 7 * i};
    return n;
}

static void *room(size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    CHECK(memory);
    return memory;
}

loading loading_of(st_checkpoint *checkpoint, const st_request *requests, size_t n) {
    loading it = {.checkpoint = checkpoint, .requests = requests, .n = n};
    it.sizes = room(n, sizeof(*it.sizes));
    it.arrived = room(n, sizeof(*it.arrived));
    it.expected = room(n, sizeof(*it.expected));
    it.status = room(n, sizeof(*it.status));
    it.has_ended = room(n, sizeof(*it.has_ended));
    for (size_t i = 0; i < n; i++) {
        const st_request *wanted = &requests[i];
        it.sizes[i] = loading_size(checkpoint, wanted);
        it.expected[i] = room(it.sizes[i], 1);
        OK(st_tensor_read(checkpoint, wanted->index, wanted->ranges, wanted->rank, it.expected[i], it.sizes[i], &err));
    }
    return it;
}

st_status loading_try(loading *it, const st_load_options *options) {
    static const st_load_options defaults = ST_LOAD_OPTIONS_INIT;
    it->options = options ? *options : defaults;
    it->ended = it->pieces = it->failed = 0;
    it->engines = 0;
    for (size_t i = 0; i < it->n; i++) {
        it->arrived[i] = 0;
        it->status[i] = ST_OK;
        it->has_ended[i] = false;
    }
    test_before();
    const st_status status = st_load_start(it->checkpoint, it->requests, it->n, options, &it->load, &err);
    test_after(__FILE__, __LINE__, "st_load_start", status, status);
    CHECK((status == ST_OK) == (it->load != NULL));
    return status;
}

void loading_start(loading *it, const st_load_options *options) {
    OK(loading_try(it, options));
}

/* The call told of none. */
static void is_none(const st_loaded *told) {
    CHECK(told->request == ST_ALL && told->index == ST_ALL && told->tag == 0 && told->buffer == 0);
    CHECK(!told->data && told->nbytes == 0 && told->offset == 0 && told->last == 0 && told->reserved == 0);
}

static bool is_one_engine(const loading *it, int32_t engine) {
    st_info info;
    CHECK(st_checkpoint_info(it->checkpoint, &info) == ST_OK);
    if (info.storage == ST_STORAGE_MEMORY)
        return engine == ST_ENGINE_MEMORY;
    return engine == ST_ENGINE_BUFFERED || engine == ST_ENGINE_DIRECT || engine == ST_ENGINE_URING;
}

static void is_staged(const loading *it, const st_loaded *told) {
    const st_load_options *options = &it->options;
    const unsigned char *data = told->data, *staging = options->staging;
    CHECK((told->buffer != 0) == (told->nbytes > 0));
    if (staging && told->nbytes)
        CHECK(data >= staging && data + told->nbytes <= staging + options->staging_bytes);
    CHECK(told->nbytes <= (options->staging_bytes ? options->staging_bytes : (size_t)256 << 20));
    CHECK(!options->piece_bytes || told->nbytes <= options->piece_bytes);
}

bool loading_is_right(const loading *it, const st_loaded *told) {
    return told->nbytes == 0 || memcmp(told->data, it->expected[told->request] + told->offset, told->nbytes) == 0;
}

/* Bytes as they should be, where they should be. */
static void is_right(loading *it, const st_loaded *told) {
    const size_t i = told->request;
    const st_request *request = &it->requests[i];
    /* Only a piece that has failed may leave a gap. */
    CHECK(told->offset == it->arrived[i] || (told->offset > it->arrived[i] && it->status[i] != ST_OK));
    CHECK(told->offset <= it->sizes[i] && told->nbytes <= it->sizes[i] - told->offset);
    CHECK(told->nbytes || it->sizes[i] == 0);
    if (request->dst) {
        CHECK(told->data == request->dst && told->nbytes == it->sizes[i] && told->buffer == 0);
    } else {
        is_staged(it, told);
    }
    CHECK(loading_is_right(it, told));
    it->arrived[i] = told->offset + told->nbytes;
    CHECK(told->last == (it->arrived[i] == it->sizes[i]));
    if (told->nbytes)
        CHECK(is_one_engine(it, told->engine));
    it->engines |= (uint32_t)told->engine;
}

st_status loading_next(loading *it, int64_t timeout_ms, st_loaded *out) {
    memset(out, 0x55, sizeof(*out));
    test_before();
    const st_status status = st_load_next(it->load, timeout_ms, out, &err);
    if (out->request == ST_ALL) {
        is_none(out);
        CHECK(status != ST_OK);
        /* Not errors: nothing is told of one. */
        if (status == ST_DONE || status == ST_TIMEOUT)
            test_after(__FILE__, __LINE__, "st_load_next", ST_OK, ST_OK);
        else
            test_after(__FILE__, __LINE__, "st_load_next", status, status);
        CHECK(status != ST_DONE || it->ended == it->n);
        return status;
    }
    test_after(__FILE__, __LINE__, "st_load_next", status, status);
    const size_t i = out->request;
    CHECK(i < it->n && !it->has_ended[i]);
    CHECK(out->status == status && out->reserved == 0 && out->last <= 1);
    CHECK(out->tag == it->requests[i].tag && out->index == it->requests[i].index);
    if (it->options.flags & ST_LOAD_IN_ORDER)
        CHECK(it->ended == i);
    if (status == ST_OK) {
        is_right(it, out);
    } else {
        CHECK(!out->data && out->nbytes == 0 && out->buffer == 0);
        it->failed += it->status[i] == ST_OK;
        it->status[i] = status;
    }
    it->pieces++;
    if (out->last) {
        it->has_ended[i] = true;
        it->ended++;
    }
    return status;
}

void loading_recycle(loading *it, const st_loaded *loaded) {
    OK(st_load_recycle(it->load, loaded, &err));
    if (loaded->buffer)
        FAILS(ST_ERR_INVALID_ARGUMENT, st_load_recycle(it->load, loaded, &err));
    else
        OK(st_load_recycle(it->load, loaded, &err));
}

void loading_drain(loading *it) {
    st_loaded loaded;
    st_status status;
    while ((status = loading_next(it, -1, &loaded)) != ST_DONE) {
        if (loaded.request == ST_ALL)
            test_after(__FILE__, __LINE__, "st_load_next", status, ST_OK);
        loading_recycle(it, &loaded);
    }
    CHECK(loading_next(it, -1, &loaded) == ST_DONE && loading_next(it, 0, &loaded) == ST_DONE);
}

/* What the numbers are when everything was delivered. */
static void is_all(const loading *it) {
    uint64_t bytes = 0;
    st_progress progress;
    for (size_t i = 0; i < it->n; i++)
        bytes += it->sizes[i];
    CHECK(st_load_progress(it->load, &progress) == ST_OK);
    CHECK(progress.items_done == it->n && progress.items_total == it->n);
    CHECK(progress.bytes_done == bytes && progress.bytes_total == bytes);
    CHECK((progress.engines & it->engines) == it->engines && (progress.engines != 0) == (bytes != 0));
    CHECK(progress.workers <= 64 && (!it->options.workers || progress.workers <= it->options.workers));
}

void loading_end(loading *it) {
    loading_drain(it);
    CHECK(it->failed == 0);
    is_all(it);
    st_load_free(it->load);
    it->load = NULL;
}

void loading_free(loading *it) {
    st_load_free(it->load);
    for (size_t i = 0; i < it->n; i++)
        free(it->expected[i]);
    free(it->expected);
    free(it->sizes);
    free(it->arrived);
    free(it->status);
    free(it->has_ended);
}

void loading_all(st_checkpoint *checkpoint, const st_request *requests, size_t n, const st_load_options *options) {
    loading it = loading_of(checkpoint, requests, n);
    loading_start(&it, options);
    loading_end(&it);
    loading_free(&it);
}

st_load_options loading_by(int32_t engine) {
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.engine = engine;
    return options;
}

/* The size of len bytes with the pages around them. */
static size_t with_guards(size_t len, size_t page) {
    return (len + page - 1) / page * page + 2 * page;
}

unsigned char *loading_guarded(size_t len, bool at_end) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t size = with_guards(len, page);
    unsigned char *mapping = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapping != MAP_FAILED);
    CHECK(size == 2 * page || mprotect(mapping + page, size - 2 * page, PROT_READ | PROT_WRITE) == 0);
    return at_end ? mapping + size - page - len : mapping + page;
}

void loading_unguard(unsigned char *bytes, size_t len) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    CHECK(munmap(bytes - (uintptr_t)bytes % page - page, with_guards(len, page)) == 0);
}

void loading_drop(const char *path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    /* What is not on the disk yet stays. */
    CHECK(fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    close(fd);
}

uint64_t loading_random(uint64_t limit) {
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % limit;
}
