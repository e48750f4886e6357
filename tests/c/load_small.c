/*
 * Loads of less than a block: the thread that calls st_load_next reads them. Threads, reads and looks at files are counted: this
 * program defines the calls, for the library to call.
 */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- The system, counted ------------------------------------------------------------------------------------------ */

static struct {
    atomic_int threads, reads, looks;
    /* Reads of bytes in this range of a file fail. */
    uint64_t bad_start, bad_end;
    /* Done within the next read. */
    void (*during_read)(void);
} sys;

static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        abort();
    return function;
}

#define REAL(type, name) \
    type;                \
    *(void **)&next = real(name)

/* Whether a read may go on. */
static bool may_read(size_t len, off_t offset) {
    atomic_fetch_add(&sys.reads, 1);
    void (*during_read)(void) = sys.during_read;
    sys.during_read = NULL;
    if (during_read)
        during_read();
    if ((uint64_t)offset < sys.bad_end && sys.bad_start < (uint64_t)offset + len) {
        errno = EIO;
        return false;
    }
    return true;
}

ssize_t pread64(int fd, void *to, size_t len, off64_t offset) {
    REAL(ssize_t(*next)(int, void *, size_t, off64_t), "pread64");
    return may_read(len, offset) ? next(fd, to, len, offset) : -1;
}

ssize_t preadv64(int fd, const struct iovec *pieces, int n, off64_t offset) {
    REAL(ssize_t(*next)(int, const struct iovec *, int, off64_t), "preadv64");
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += pieces[i].iov_len;
    return may_read(len, offset) ? next(fd, pieces, n, offset) : -1;
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict out) {
    REAL(int (*next)(int, const char *restrict, int, unsigned, struct statx *restrict), "statx");
    atomic_fetch_add(&sys.looks, 1);
    return next(folder, path, flags, mask, out);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    REAL(int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *), "pthread_create");
    atomic_fetch_add(&sys.threads, 1);
    return next(thread, attributes, run, argument);
}

static void count_anew(void) {
    sys.threads = sys.reads = sys.looks = 0;
    sys.bad_start = sys.bad_end = 0;
    sys.during_read = NULL;
}

/* --- Who reads ---------------------------------------------------------------------------------------------------- */

/* Some 60 KB of small requests: whole tensors, runs and columns, none of the large ones. */
static size_t small_requests(st_request *out) {
    static const st_range rows[1] = {{3, 20}}, columns[2] = {{0, ST_END}, {7, 30}};
    const st_request requests[] = {{L_SMALL, NULL, 0, NULL, 0, 1}, {L_MATRIX, rows, 1, NULL, 0, 2}, {L_TAIL, NULL, 0, NULL, 0, 3},
                                   {L_EMPTY, NULL, 0, NULL, 0, 4}, {L_BYTE, NULL, 0, NULL, 0, 5},   {L_MATRIX, columns, 2, NULL, 0, 6},
                                   {L_LAST, NULL, 0, NULL, 0, 7},  {L_SMALL, NULL, 0, NULL, 0, 8}};
    memcpy(out, requests, sizeof(requests));
    return LEN(requests);
}
enum { SMALL = 8, BYTES = 160000 };

static void small_loads_start_no_thread(void) {
    static unsigned char to[SMALL][BYTES];
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_MEMORY; storage++) {
        st_checkpoint *checkpoint = fixture_open(&loading_model, storage, 0);
        for (size_t e = 0; e < LEN(loading_every_engine); e++)
            for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER && loading_fits(storage, loading_every_engine[e]); flags++)
                for (int placed = 0; placed <= 2; placed++) {
                    st_request requests[SMALL];
                    const size_t n = small_requests(requests);
                    for (size_t i = 0; i < n; i++)
                        if (placed == 2 || (placed == 1 && i % 2)) {
                            requests[i].dst = to[i] + i;
                            requests[i].dst_len = BYTES - i;
                        }
                    st_load_options options = loading_by(loading_every_engine[e]);
                    options.flags = flags;
                    options.piece_bytes = placed ? 0 : 4096;
                    count_anew();
                    loading it = loading_of(checkpoint, requests, n);
                    loading_start(&it, &options);
                    loading_drain(&it);
                    st_progress progress;
                    CHECK(st_load_progress(it.load, &progress) == ST_OK && progress.workers == 0);
                    loading_end(&it);
                    loading_free(&it);
                    CHECK(sys.threads == 0);
                }
        st_close(checkpoint);
    }
}

static int threads_of(st_checkpoint *checkpoint, const st_request *requests, size_t n, uint32_t workers, size_t block) {
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.workers = workers;
    options.block_bytes = block;
    count_anew();
    loading_all(checkpoint, requests, n, &options);
    return sys.threads;
}

static void other_loads_start_threads(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    st_request requests[L_LEN];
    const size_t all = loading_whole(checkpoint, requests, L_LEN);
    CHECK(threads_of(checkpoint, requests, all, 0, 0) > 0);
    /* Large and tiny ones. */
    const st_request mixed[] = {{L_SMALL, NULL, 0, NULL, 0, 1}, {L_LARGE, NULL, 0, NULL, 0, 2}, {L_ROWS, NULL, 0, NULL, 0, 3}};
    CHECK(threads_of(checkpoint, mixed, LEN(mixed), 0, 0) > 0);
    /* A block is what the options say. */
    CHECK(threads_of(checkpoint, mixed, 1, 0, 64 << 10) == 0 && threads_of(checkpoint, mixed + 1, 1, 0, 64 << 10) > 0);
    /* Whoever asks for threads has them. */
    CHECK(threads_of(checkpoint, mixed, 1, 0, 0) == 0 && threads_of(checkpoint, mixed, 1, 3, 0) == 1);
    st_close(checkpoint);
}

static void nothing_is_read_before_it_is_asked_for(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_READ, 0);
    unsigned char to[16];
    const st_request request = {L_SMALL, NULL, 0, to, sizeof(to), 0};
    for (int take = 0; take < 2; take++) {
        memset(to, 0x55, sizeof(to));
        count_anew();
        st_load *load;
        OK(st_load_start(checkpoint, &request, 1, NULL, &load, &err));
        usleep(2000);
        st_progress progress;
        CHECK(st_load_progress(load, &progress) == ST_OK && progress.bytes_done == 0 && progress.bytes_total == 16);
        CHECK(sys.reads == 0 && to[0] == 0x55 && to[15] == 0x55);
        if (take) {
            /* Not to wait is to read all the same. */
            st_loaded loaded;
            OK(st_load_next(load, 0, &loaded, &err));
            CHECK(loaded.data == to && sys.reads == 1 && st_load_next(load, 0, &loaded, &err) == ST_DONE);
            CHECK(st_load_progress(load, &progress) == ST_OK && progress.bytes_done == 16 && progress.items_done == 1);
        }
        st_load_free(load);
        CHECK((to[0] == 0x55) == !take);
    }
    st_close(checkpoint);
}

/* --- Many tiny ones ----------------------------------------------------------------------------------------------- */

enum { TINY = 3000, TINY_BYTES = 96 };
static const fixture_generation tiny = {1, TINY, TINY_BYTES, 0, ST_WRITE_BLAKE3, 0};

/* Loads all of them to places that are not as in the file, and compares. Counts. */
static void load_tiny(int32_t verify, int to_dst) {
    const char *path = fixture_model_in("tiny");
    fixture_put_quickly(path, &tiny);
    st_open_options open_options = ST_OPEN_OPTIONS_INIT;
    open_options.storage = ST_STORAGE_READ;
    open_options.verify = verify;
    st_checkpoint *checkpoint;
    OK(st_open(path, &open_options, &checkpoint, &err));
    static unsigned char expected[TINY][TINY_BYTES], to[TINY][TINY_BYTES + 32];
    static st_request requests[TINY];
    for (size_t i = 0; i < TINY; i++) {
        OK(st_tensor_read(checkpoint, i, NULL, 0, expected[i], TINY_BYTES, &err));
        requests[i] = (st_request){i, NULL, 0, to_dst ? to[i] : NULL, TINY_BYTES, i};
    }
    st_close(checkpoint);
    OK(st_open(path, &open_options, &checkpoint, &err)); /* nothing is verified yet */
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    options.engine = ST_ENGINE_BUFFERED;
    count_anew();
    st_load *load;
    OK(st_load_start(checkpoint, requests, TINY, &options, &load, &err));
    const int looks = sys.looks;
    st_loaded loaded;
    size_t n = 0;
    while (st_load_next(load, -1, &loaded, &err) == ST_OK) {
        CHECK(loaded.nbytes == TINY_BYTES && memcmp(loaded.data, expected[loaded.index], TINY_BYTES) == 0);
        OK(st_load_recycle(load, &loaded, &err));
        n++;
    }
    CHECK(n == TINY && sys.threads == 0);
    /* A group of requests is one read, but for its lists of places. */
    CHECK(sys.reads >= 1 && sys.reads <= TINY / 100);
    /* Nor is the file looked at for each. */
    CHECK(sys.looks - looks <= TINY / 30);
    st_load_free(load);
    st_close(checkpoint);
}

static void tiny_neighbours_share_reads(void) {
    load_tiny(ST_VERIFY_NONE, 0);
    load_tiny(ST_VERIFY_NONE, 1);
}

static void tiny_neighbours_that_are_verified_share_looks(void) {
    load_tiny(ST_VERIFY_FIRST_USE, 0);
    load_tiny(ST_VERIFY_FIRST_USE, 1);
}

/* --- What goes wrong ---------------------------------------------------------------------------------------------- */

static void bytes_that_cannot_be_read_cost_only_their_request(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_READ, 0);
    st_request requests[SMALL];
    const size_t n = small_requests(requests);
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, L_TAIL, &tensor, &err));
    loading it = loading_of(checkpoint, requests, n);
    for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER; flags++)
        for (size_t e = 0; e < LEN(loading_engines); e++) {
            /* What reads around the page cache may not come by pread. */
            if (loading_engines[e] == ST_ENGINE_URING)
                continue;
            st_load_options options = loading_by(loading_engines[e]);
            options.flags = flags;
            count_anew();
            loading_start(&it, &options);
            sys.bad_start = tensor.file_offset + 4000;
            sys.bad_end = sys.bad_start + 1;
            loading_drain(&it);
            CHECK(it.failed == 1 && it.ended == n && sys.threads == 0);
            for (size_t i = 0; i < n; i++)
                CHECK(it.status[i] == (requests[i].index == L_TAIL ? ST_ERR_IO : ST_OK));
            st_load_free(it.load);
            it.load = NULL;
        }
    count_anew();
    loading_free(&it);
    st_close(checkpoint);
}

static st_load *load_of_read;

static void cancel(void) { st_load_cancel(load_of_read); }

static void *cancel_in_thread(void *unused) {
    cancel();
    return unused;
}

static void cancel_by_another(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, cancel_in_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

static void cancelled_while_it_is_read(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_READ, 0);
    st_request requests[SMALL];
    const size_t n = small_requests(requests);
    void (*const ways[])(void) = {cancel, cancel_by_another};
    for (size_t i = 0; i < LEN(ways); i++) {
        st_load_options options = loading_by(ST_ENGINE_BUFFERED);
        count_anew();
        OK(st_load_start(checkpoint, requests, n, &options, &load_of_read, &err));
        sys.during_read = ways[i];
        st_loaded loaded;
        FAILS(ST_ERR_CANCELLED, st_load_next(load_of_read, -1, &loaded, &err));
        CHECK(loaded.request == ST_ALL && sys.reads == 1);
        FAILS(ST_ERR_CANCELLED, st_load_next(load_of_read, 0, &loaded, &err));
        st_load_free(load_of_read);
    }
    st_close(checkpoint);
}

/* --- Several threads ---------------------------------------------------------------------------------------------- */

static void *take_all(void *taken) {
    st_loaded loaded;
    st_status status;
    while ((status = st_load_next(load_of_read, INT64_MAX, &loaded, &err)) == ST_OK) {
        atomic_fetch_add((atomic_size_t *)taken, loaded.nbytes);
        CHECK(st_load_recycle(load_of_read, &loaded, &err) == ST_OK);
    }
    CHECK(status == ST_DONE);
    return NULL;
}

/* Staging memory for a part of it at a time: whoever waits may have to read on when another has recycled. */
static void several_threads_take_from_one(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    st_request requests[60];
    size_t total = 0;
    for (size_t i = 0; i < LEN(requests); i++) {
        requests[i] = (st_request){i % 10 ? L_TAIL : L_CUBE, NULL, 0, NULL, 0, 0};
        total += loading_size(checkpoint, &requests[i]);
    }
    CHECK(total < 4 << 20);
    for (int round = 0; round < 50; round++) {
        st_load_options options = ST_LOAD_OPTIONS_INIT;
        options.staging_bytes = 64 << 10;
        options.flags = round % 2 ? ST_LOAD_IN_ORDER : 0;
        OK(st_load_start(checkpoint, requests, LEN(requests), &options, &load_of_read, &err));
        atomic_size_t taken = 0;
        pthread_t takers[4];
        count_anew();
        for (size_t i = 0; i < LEN(takers); i++)
            CHECK(pthread_create(&takers[i], NULL, take_all, &taken) == 0);
        for (size_t i = 0; i < LEN(takers); i++)
            CHECK(pthread_join(takers[i], NULL) == 0);
        CHECK(taken == total && sys.threads == (int)LEN(takers));
        st_load_free(load_of_read);
    }
    st_close(checkpoint);
}

static void in_child(void) {
    st_loaded loaded;
    FAILS(ST_ERR_UNSUPPORTED, st_load_next(load_of_read, -1, &loaded, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_load_recycle(load_of_read, &loaded, &err));
    st_progress progress;
    CHECK(st_load_progress(load_of_read, &progress) == ST_OK && progress.items_total == 0);
    st_load_free(load_of_read);
    test_end_child();
}

static void children_let_it_alone(void) {
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    const st_request requests[] = {{L_TAIL, NULL, 0, NULL, 0, 0}, {L_SMALL, NULL, 0, NULL, 0, 1}};
    loading it = loading_of(checkpoint, requests, LEN(requests));
    loading_start(&it, NULL);
    load_of_read = it.load;
    CHECK(test_in_child(in_child) == 0);
    st_loaded loaded;
    CHECK(loading_next(&it, -1, &loaded) == ST_OK);
    CHECK(test_in_child(in_child) == 0);
    loading_recycle(&it, &loaded);
    loading_end(&it);
    loading_free(&it);
    st_close(checkpoint);
}

/* --- Staging memory ----------------------------------------------------------------------------------------------- */

static long own_memory(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    while (file && fgets(line, sizeof(line), file))
        if (sscanf(line, "RssAnon: %ld", &kib) == 1)
            break;
    CHECK(file && fclose(file) == 0);
    return kib;
}

/* A huge page more than is staged may be touched, and what the load itself is made of. */
static void little_is_staged_in_little_memory(void) {
    enum { STAGED = 300 * 512 + 280000 + 8000, HUGE_PAGE = 2 << 20, RING = 256 << 20 };
    st_checkpoint *checkpoint = fixture_open(&loading_model, ST_STORAGE_READ, 0);
    const st_request requests[] = {{L_MATRIX, NULL, 0, NULL, 0, 0}, {L_ODD, NULL, 0, NULL, 0, 1}, {L_TAIL, NULL, 0, NULL, 0, 2}};
    unsigned char *given = aligned_alloc(HUGE_PAGE, RING);
    CHECK(given);
    for (int is_given = 0; is_given < 2; is_given++)
        for (uint32_t workers = 0; workers < 2; workers++) {
            st_load_options options = ST_LOAD_OPTIONS_INIT;
            options.staging = is_given ? given : NULL;
            options.staging_bytes = RING;
            options.workers = workers;
            const long before = own_memory();
            st_load *load;
            OK(st_load_start(checkpoint, requests, LEN(requests), &options, &load, &err));
            st_loaded loaded;
            size_t bytes = 0;
            while (st_load_next(load, INT64_MAX, &loaded, &err) == ST_OK)
                bytes += loaded.nbytes;
            const long more = own_memory() - before;
            CHECK(bytes == STAGED);
            if (!test_is_instrumented() && before >= 0)
                CHECK(more <= (STAGED + 2 * HUGE_PAGE) / 1024 + 512);
            st_load_free(load);
        }
    free(given);
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(small_loads_start_no_thread),
    CASE(other_loads_start_threads),
    CASE(nothing_is_read_before_it_is_asked_for),
    CASE(tiny_neighbours_share_reads),
    CASE(tiny_neighbours_that_are_verified_share_looks),
    CASE(bytes_that_cannot_be_read_cost_only_their_request),
    CASE(cancelled_while_it_is_read),
    CASE(several_threads_take_from_one),
    CASE(children_let_it_alone),
    CASE(little_is_staged_in_little_memory),
};

TEST_MAIN(cases)
