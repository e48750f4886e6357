/* What is held, what counts against the budget, and in which order tensors go. What becomes of pages is in pages.c. */
#define _GNU_SOURCE

#include "residency.h"

#include "dlpack_abi.h"

#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* The tensors of most cases: sizes that tell which of them went. */
static const size_t sizes[] = {1000, 2000, 3000, 0, 4000, 5000};
static const size_t starts[] = {0, 1000, 3000, 6000, 6000, 10000};
enum { A, B, C, EMPTY, D, E, COUNT };

/* A way to hold tensors. */
typedef struct way {
    int32_t storage;
    uint32_t flags;
    size_t shift;
    bool copies; /* tensors lie in copies */
    bool fixed;  /* which must not go, since they may have been written to */
} way;

static bool is_right(const unsigned char *data, size_t index) {
    return fixture_is(data, starts[index], sizes[index]);
}

/* Runs a test over each storage, aligned and misaligned tensors, with and without copy-on-write. */
static void each_way(void (*test)(st_checkpoint *, const way *)) {
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (uint32_t flags = 0; flags <= ST_OPEN_COPY_ON_WRITE; flags++)
            for (size_t shift = 0; shift < 2; shift++) {
                const int32_t storage = fixture_storages[s];
                const bool writable = flags == ST_OPEN_COPY_ON_WRITE, in_memory = storage == ST_STORAGE_MEMORY;
                const bool copies = shift || storage == ST_STORAGE_READ || (in_memory && writable);
                const way way = {storage, flags, shift, copies, copies && writable};
                st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, shift), storage, flags);
                test(checkpoint, &way);
                st_close(checkpoint);
            }
}

/* The sums over all tensors: in use, held in copies, charged. */
static void sums_are(st_checkpoint *checkpoint, uint64_t in_use, uint64_t copied, uint64_t charged) {
    const st_residency_info all = look(checkpoint, ST_ALL);
    CHECK(all.in_use_bytes == in_use);
    CHECK(all.copied_bytes == copied);
    CHECK(all.charged_bytes == charged);
    st_residency_info sum = {0};
    for (size_t i = 0; i < st_len(checkpoint); i++) {
        const st_residency_info one = look(checkpoint, i);
        sum.in_use_bytes += one.in_use_bytes;
        sum.copied_bytes += one.copied_bytes;
        sum.charged_bytes += one.charged_bytes;
        sum.hits += one.hits;
        sum.misses += one.misses;
        sum.evictions += one.evictions;
        CHECK(one.budget == all.budget);
    }
    CHECK(sum.in_use_bytes == in_use && sum.copied_bytes == copied && sum.charged_bytes == charged);
    CHECK(sum.hits == all.hits && sum.misses == all.misses && sum.evictions == all.evictions);
}

static void counts_are(st_checkpoint *checkpoint, size_t index, uint64_t hits, uint64_t misses, uint64_t evictions) {
    const st_residency_info info = look(checkpoint, index);
    CHECK(info.hits == hits);
    CHECK(info.misses == misses);
    CHECK(info.evictions == evictions);
}

static bool is_held(st_checkpoint *checkpoint, size_t index) {
    return look(checkpoint, index).charged_bytes == sizes[index];
}

static void nulls_are_refused(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    const void *data = &data;
    size_t nbytes = 77;
    st_residency_info info;
    const size_t index = 0;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_prefetch(NULL, &index, 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_prefetch(NULL, NULL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_prefetch(checkpoint, NULL, 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_prefetch(checkpoint, &index, SIZE_MAX, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_acquire(NULL, 0, &data, &nbytes, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_acquire(checkpoint, 0, NULL, &nbytes, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_release(NULL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_evict(NULL, 0, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_evict(NULL, ST_ALL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_set_budget(NULL, 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_residency(NULL, 0, &info, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_residency(checkpoint, 0, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_residency(checkpoint, ST_ALL, NULL, &err));
    CHECK(data == &data && nbytes == 77);
    /* Nothing was acquired on the way, and details are not obligatory. */
    sums_are(checkpoint, 0, 0, 0);
    CHECK(st_acquire(checkpoint, 0, &data, NULL, NULL) == ST_OK);
    CHECK(st_evict(checkpoint, 0, 0, NULL) == ST_ERR_IN_USE);
    CHECK(st_release(checkpoint, 0, NULL) == ST_OK);
    CHECK(st_release(checkpoint, 0, NULL) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_residency(checkpoint, 77, &info, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_prefetch(checkpoint, NULL, 0, NULL) == ST_OK);
    CHECK(st_set_budget(checkpoint, 0, NULL) == ST_OK);
    st_close(checkpoint);
}

static void indices_beyond_are_refused(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        const size_t beyond[] = {SAMPLE_LEN, SAMPLE_LEN + 1, (size_t)1 << 32, SIZE_MAX - 1, ST_ALL};
        const void *data = &data;
        size_t nbytes = 77;
        st_residency_info info, untouched;
        memset(&info, 0xa5, sizeof(info));
        untouched = info;
        /* Before and after the first tensor is held. */
        for (int held = 0; held < 2; held++) {
            for (size_t i = 0; i < LEN(beyond); i++) {
                const size_t indices[] = {0, beyond[i], 1};
                FAILS(ST_ERR_OUT_OF_RANGE, st_prefetch(checkpoint, indices, 3, &err));
                FAILS(ST_ERR_OUT_OF_RANGE, st_acquire(checkpoint, beyond[i], &data, &nbytes, &err));
                FAILS(ST_ERR_OUT_OF_RANGE, st_release(checkpoint, beyond[i], &err));
                if (beyond[i] == ST_ALL)
                    continue;
                FAILS(ST_ERR_OUT_OF_RANGE, st_evict(checkpoint, beyond[i], 0, &err));
                FAILS(ST_ERR_OUT_OF_RANGE, st_residency(checkpoint, beyond[i], &info, &err));
                SAYS("6"); /* how many there are */
            }
            CHECK(data == &data && nbytes == 77 && memcmp(&info, &untouched, sizeof(info)) == 0);
            use(checkpoint, SAMPLE_ODD);
        }
        st_close(checkpoint);
    }
}

static void unknown_flags_are_refused(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_READ, 0);
    use(checkpoint, SAMPLE_ODD);
    for (int bit = 1; bit < 32; bit++) {
        FAILS(ST_ERR_INVALID_ARGUMENT, st_evict(checkpoint, SAMPLE_ODD, 1u << bit | ST_EVICT_PAGE_CACHE, &err));
        FAILS(ST_ERR_INVALID_ARGUMENT, st_evict(checkpoint, ST_ALL, 1u << bit, &err));
    }
    sums_are(checkpoint, 0, SAMPLE_ODD_SIZE, SAMPLE_ODD_SIZE);
    st_close(checkpoint);
}

/* Every tensor of the sample, however it lies. */
static void acquire_points_to_the_bytes(void) {
    const size_t at[] = {SAMPLE_WEIGHT_AT, SAMPLE_BIAS_AT, SAMPLE_ODD_AT, SAMPLE_BYTE_AT, SAMPLE_SCALAR_AT, SAMPLE_SCALAR_AT};
    const size_t alignment[] = {4, 2, 4, 1, 8, 8};
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (size_t shift = 0; shift < 9; shift++) {
            fixture file = fixture_sample;
            file.shift = shift;
            st_checkpoint *checkpoint = fixture_open(&file, fixture_storages[s], shift % 2 ? ST_OPEN_COPY_ON_WRITE : 0);
            for (size_t i = 0; i < SAMPLE_LEN; i++) {
                const void *data = NULL;
                size_t nbytes = 77;
                OK(st_acquire(checkpoint, i, &data, &nbytes, &err));
                CHECK(data && (uintptr_t)data % alignment[i] == 0);
                CHECK(nbytes == size_of(checkpoint, i) && fixture_is(data, at[i], nbytes));
                CHECK(acquire(checkpoint, i) == data);
                counts_are(checkpoint, i, 1, 1, 0);
                CHECK(look(checkpoint, i).in_use_bytes == nbytes);
                release(checkpoint, i);
                CHECK(look(checkpoint, i).in_use_bytes == nbytes);
                FAILS(ST_ERR_IN_USE, st_evict(checkpoint, i, 0, &err));
                release(checkpoint, i);
                CHECK(look(checkpoint, i).in_use_bytes == 0 && look(checkpoint, i).charged_bytes == nbytes);
                FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, i, &err));
                CHECK(acquire(checkpoint, i) == data);
                release(checkpoint, i);
                counts_are(checkpoint, i, 2, 1, 0);
            }
            st_close(checkpoint);
        }
}

static void untouched_checkpoint(st_checkpoint *checkpoint, const way *way) {
    (void)way;
    const st_residency_info all = look(checkpoint, ST_ALL), nothing = {0};
    CHECK(memcmp(&all, &nothing, sizeof(all)) == 0);
    evict(checkpoint, A);
    evict(checkpoint, ST_ALL);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, A, &err));
    SAYS("\"t0\"");
    counts_are(checkpoint, ST_ALL, 0, 0, 0);
}

static void nothing_is_held_at_first(void) {
    each_way(untouched_checkpoint);
}

static void evict_one_and_all(st_checkpoint *checkpoint, const way *way) {
    const unsigned char *a = acquire(checkpoint, A);
    CHECK(is_right(a, A));
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, A, 0, &err));
    SAYS("\"t0\"");
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, A, ST_EVICT_PAGE_CACHE, &err));
    use(checkpoint, B);
    use(checkpoint, EMPTY);
    sums_are(checkpoint, 1000, way->copies ? 3000 : 0, 3000);
    evict(checkpoint, ST_ALL);
    /* What is in use stays, and so do copies that may have been written to. */
    const uint64_t left = way->fixed ? 3000 : 1000;
    sums_are(checkpoint, 1000, way->copies ? left : 0, left);
    counts_are(checkpoint, A, 0, 1, 0);
    counts_are(checkpoint, B, 0, 1, !way->fixed);
    CHECK(is_right(a, A));
    release(checkpoint, A);
    OK(st_evict(checkpoint, A, ST_EVICT_PAGE_CACHE, &err));
    evict(checkpoint, A);
    counts_are(checkpoint, A, 0, 1, !way->fixed);
    sums_are(checkpoint, 0, way->fixed ? 3000 : 0, way->fixed ? 3000 : 0);
    CHECK(is_right(acquire(checkpoint, A), A));
    counts_are(checkpoint, A, way->fixed, way->fixed ? 1 : 2, !way->fixed);
    release(checkpoint, A);
}

static void evict_takes_what_is_not_in_use(void) {
    each_way(evict_one_and_all);
}

static void least_recently_used(st_checkpoint *checkpoint, const way *way) {
    if (way->fixed)
        return;
    set_budget(checkpoint, 6000);
    use(checkpoint, A);
    use(checkpoint, B);
    use(checkpoint, C);
    CHECK(look(checkpoint, ST_ALL).charged_bytes == 6000 && look(checkpoint, ST_ALL).evictions == 0);
    use(checkpoint, A);
    /* 4000 need the room of B, the oldest now, and of C. */
    use(checkpoint, D);
    CHECK(is_held(checkpoint, A) && !is_held(checkpoint, B) && !is_held(checkpoint, C) && is_held(checkpoint, D));
    use(checkpoint, EMPTY);
    sums_are(checkpoint, 0, way->copies ? 5000 : 0, 5000);
    use(checkpoint, A);
    /* 3000 need the room of D alone: A was used since. */
    use(checkpoint, C);
    CHECK(is_held(checkpoint, A) && is_held(checkpoint, C) && !is_held(checkpoint, D));
    counts_are(checkpoint, A, 2, 1, 0);
    counts_are(checkpoint, B, 0, 1, 1);
    counts_are(checkpoint, C, 0, 2, 1);
    counts_are(checkpoint, D, 0, 1, 1);
    /* What is in use is passed over, old as it is. */
    CHECK(is_right(acquire(checkpoint, A), A));
    use(checkpoint, C);
    use(checkpoint, E);
    CHECK(is_held(checkpoint, A) && is_held(checkpoint, E) && !is_held(checkpoint, C));
    set_budget(checkpoint, 5999);
    CHECK(is_held(checkpoint, A) && !is_held(checkpoint, E));
    release(checkpoint, A);
    CHECK(is_held(checkpoint, A));
    set_budget(checkpoint, 0);
    CHECK(look(checkpoint, ST_ALL).budget == 0 && is_held(checkpoint, A));
    for (size_t i = 0; i < COUNT; i++)
        use(checkpoint, i);
    sums_are(checkpoint, 0, way->copies ? 15000 : 0, 15000);
}

static void least_recently_used_goes_first(void) {
    each_way(least_recently_used);
}

static void no_room(st_checkpoint *checkpoint, const way *way) {
    set_budget(checkpoint, 6000);
    acquire(checkpoint, B);
    use(checkpoint, C);
    const void *data = &data;
    size_t nbytes = 77;
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, E, &data, &nbytes, &err));
    SAYS("\"t5\"");
    SAYS("5000");
    SAYS("6000");
    SAYS(way->fixed ? "5000 bytes in use" : "2000 bytes in use");
    CHECK(data == &data && nbytes == 77);
    sums_are(checkpoint, 2000, way->copies ? 5000 : 0, 5000);
    counts_are(checkpoint, ST_ALL, 0, 2, 0);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, E, &err));
    /* Nothing takes no room. */
    use(checkpoint, EMPTY);
    use(checkpoint, C);
    counts_are(checkpoint, C, 1, 1, 0);
    release(checkpoint, B);
    if (way->fixed)
        return;
    CHECK(is_right(acquire(checkpoint, E), E));
    sums_are(checkpoint, 5000, way->copies ? 5000 : 0, 5000);
    release(checkpoint, E);
}

static void no_room_beside_what_is_in_use(void) {
    each_way(no_room);
}

static void lower_the_budget(st_checkpoint *checkpoint, const way *way) {
    acquire(checkpoint, A);
    acquire(checkpoint, B);
    const unsigned char *c = acquire(checkpoint, C);
    acquire(checkpoint, C);
    use(checkpoint, D);
    set_budget(checkpoint, 1500);
    const uint64_t rest = way->fixed ? 4000 : 0;
    sums_are(checkpoint, 6000, way->copies ? 6000 + rest : 0, 6000 + rest);
    CHECK(look(checkpoint, ST_ALL).budget == 1500);
    /* What is held can still be acquired, and what is not cannot. */
    CHECK(acquire(checkpoint, C) == c);
    release(checkpoint, C);
    const void *data;
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, E, &data, NULL, &err));
    use(checkpoint, EMPTY);
    release(checkpoint, C);
    CHECK(is_held(checkpoint, C) && is_right(c, C));
    release(checkpoint, C);
    CHECK(is_held(checkpoint, C) == way->fixed);
    release(checkpoint, B);
    CHECK(is_held(checkpoint, B) == way->fixed);
    release(checkpoint, A);
    CHECK(is_held(checkpoint, A));
    const uint64_t left = way->fixed ? 10000 : 1000;
    sums_are(checkpoint, 0, way->copies ? left : 0, left);
}

static void budget_lowered_below_what_is_in_use(void) {
    each_way(lower_the_budget);
}

static void larger_than_the_budget(st_checkpoint *checkpoint, const way *way) {
    const void *data;
    set_budget(checkpoint, 999);
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, A, &data, NULL, &err));
    SAYS("beside 0 bytes");
    /* A pointer to where it lies costs nothing; a copy does. */
    if (way->copies) {
        FAILS(ST_ERR_BUDGET, st_tensor_ptr(checkpoint, A, &data, NULL, &err));
        SAYS("1000");
        SAYS("999");
    } else {
        CHECK(is_right(pointer_to(checkpoint, A), A));
    }
    sums_are(checkpoint, 0, 0, 0);
    set_budget(checkpoint, 1000);
    CHECK(is_right(acquire(checkpoint, A), A));
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, B, &data, NULL, &err));
    release(checkpoint, A);
    set_budget(checkpoint, 1);
    CHECK(is_held(checkpoint, A) == way->fixed);
    set_budget(checkpoint, UINT64_MAX);
    for (size_t i = 0; i < COUNT; i++)
        use(checkpoint, i);
    CHECK(look(checkpoint, ST_ALL).charged_bytes == 15000);
}

static void tensor_larger_than_the_budget(void) {
    each_way(larger_than_the_budget);
}

static void point_to(st_checkpoint *checkpoint, const way *way) {
    const void *data;
    set_budget(checkpoint, 6000);
    use(checkpoint, E);
    const unsigned char *b = way->fixed ? NULL : pointer_to(checkpoint, B);
    if (way->fixed) {
        /* The copy that was acquired stays as well. */
        FAILS(ST_ERR_BUDGET, st_tensor_ptr(checkpoint, B, &data, NULL, &err));
        return;
    }
    CHECK(is_right(b, B));
    if (!way->copies) {
        sums_are(checkpoint, 0, 0, 5000);
        evict(checkpoint, B);
        CHECK(is_right(b, B));
        return;
    }
    /* E made room, and B is in use for ever. */
    sums_are(checkpoint, 2000, 2000, 2000);
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, B, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, B, &err));
    evict(checkpoint, ST_ALL);
    CHECK(acquire(checkpoint, B) == b);
    release(checkpoint, B);
    set_budget(checkpoint, 1);
    CHECK(pointer_to(checkpoint, B) == b && is_right(b, B));
    FAILS(ST_ERR_BUDGET, st_tensor_ptr(checkpoint, A, &data, NULL, &err));
    SAYS("beside 2000 bytes");
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, A, &data, NULL, &err));
    sums_are(checkpoint, 2000, 2000, 2000);
    /* One that is acquired already stays when it is pointed to. */
    set_budget(checkpoint, 3000);
    const unsigned char *a = acquire(checkpoint, A);
    CHECK(pointer_to(checkpoint, A) == a);
    release(checkpoint, A);
    evict(checkpoint, ST_ALL);
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, A, 0, &err));
    sums_are(checkpoint, 3000, 3000, 3000);
    CHECK(is_right(a, A) && is_right(b, B));
}

static void copies_pointed_to_stay(void) {
    each_way(point_to);
}

static void views_and_dlpack_over_copies_stay(void) {
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_MMAP, 0);
    const st_range some = {10, 20};
    st_view view;
    struct DLManagedTensorVersioned *managed;
    struct DLManagedTensor *old;
    const void *data;
    set_budget(checkpoint, 6000);
    OK(st_tensor_view(checkpoint, A, &some, 1, &view, &err));
    OK(st_tensor_dlpack(checkpoint, B, NULL, 0, &managed, &err));
    OK(st_tensor_dlpack_unversioned(checkpoint, C, &some, 1, &old, &err));
    sums_are(checkpoint, 6000, 6000, 6000);
    managed = (managed->deleter(managed), NULL);
    old->deleter(old);
    /* Who deletes the tensor cannot know who else points to the copy. */
    sums_are(checkpoint, 6000, 6000, 6000);
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, D, &data, NULL, &err));
    FAILS(ST_ERR_BUDGET, st_tensor_dlpack(checkpoint, D, NULL, 0, &managed, &err));
    CHECK(!managed);
    FAILS(ST_ERR_BUDGET, st_tensor_dlpack_unversioned(checkpoint, D, NULL, 0, &old, &err));
    CHECK(!old);
    FAILS(ST_ERR_BUDGET, st_tensor_view(checkpoint, D, NULL, 0, &view, &err));
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, B, 0, &err));
    evict(checkpoint, ST_ALL);
    CHECK(fixture_is(view.data, starts[A] + 20, 20));
    OK(st_tensor_dlpack(checkpoint, B, NULL, 0, &managed, &err));
    st_close(checkpoint);
    CHECK(is_right(managed->dl_tensor.data, B));
    managed->deleter(managed);
}

static void reads_are_not_held(st_checkpoint *checkpoint, const way *way) {
    (void)way;
    unsigned char bytes[5000];
    set_budget(checkpoint, 1);
    for (size_t i = 0; i < COUNT; i++) {
        OK(st_tensor_read(checkpoint, i, NULL, 0, bytes, sizeof(bytes), &err));
        CHECK(is_right(bytes, i));
    }
    sums_are(checkpoint, 0, 0, 0);
}

static void read_needs_no_budget(void) {
    each_way(reads_are_not_held);
}

static void budget_of_the_options(void) {
    const char *path = fixture_write("sizes.safetensors", tensors_of("U16", 2, sizes, COUNT, 1));
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.budget = 3000;
    st_checkpoint *checkpoint;
    const void *data;
    OK(st_open(path, &options, &checkpoint, &err));
    CHECK(look(checkpoint, ST_ALL).budget == 3000 && look(checkpoint, A).budget == 3000);
    use(checkpoint, A);
    use(checkpoint, C);
    CHECK(!is_held(checkpoint, A) && is_held(checkpoint, C));
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, D, &data, NULL, &err));
    set_budget(checkpoint, 4000);
    use(checkpoint, D);
    CHECK(!is_held(checkpoint, C) && is_held(checkpoint, D));
    st_close(checkpoint);

    size_t len;
    unsigned char *bytes = fixture_bytes(tensors_of("U16", 2, sizes, COUNT, 1), &len);
    OK(st_open_buffer(bytes, len, &options, &checkpoint, &err));
    FAILS(ST_ERR_BUDGET, st_acquire(checkpoint, D, &data, NULL, &err));
    st_close(checkpoint);
    free(bytes);
}

/* As a program has them that was compiled before there were budgets. */
static void options_without_a_budget(void) {
    struct {
        size_t struct_size;
        int32_t storage;
        uint32_t flags;
        uint64_t not_theirs;
    } first = {16, ST_STORAGE_READ, 0, 1};
    st_checkpoint *checkpoint;
    OK(st_open(fixture_write("sizes.safetensors", tensors_of("U16", 2, sizes, COUNT, 0)), (const void *)&first, &checkpoint, &err));
    CHECK(look(checkpoint, ST_ALL).budget == 0);
    for (size_t i = 0; i < COUNT; i++)
        CHECK(is_right(acquire(checkpoint, i), i));
    sums_are(checkpoint, 15000, 15000, 15000);
    st_close(checkpoint);
}

static void lock_can_neither_evict_nor_have_a_budget(void) {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.flags = ST_OPEN_LOCK;
    options.budget = 1 << 20;
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_UNSUPPORTED, st_open(path, &options, &checkpoint, &err));
    CHECK(!checkpoint);
    options.budget = 0;
    if (st_open(path, &options, &checkpoint, &err) != ST_OK)
        SKIP("no memory can be locked here");
    const unsigned char *weight = acquire(checkpoint, SAMPLE_WEIGHT);
    FAILS(ST_ERR_UNSUPPORTED, st_set_budget(checkpoint, 1 << 20, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_evict(checkpoint, SAMPLE_ODD, 0, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_evict(checkpoint, ST_ALL, ST_EVICT_PAGE_CACHE, &err));
    CHECK(fixture_is(weight, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    release(checkpoint, SAMPLE_WEIGHT);
    CHECK(look(checkpoint, SAMPLE_WEIGHT).charged_bytes == SAMPLE_WEIGHT_SIZE);
    const size_t all[] = {0, 1, 2, 3, 4, 5};
    OK(st_prefetch(checkpoint, all, 6, &err));
    st_close(checkpoint);
}

static void *release_here(void *checkpoint) {
    for (int i = 0; i < 100; i++)
        release(checkpoint, B);
    return NULL;
}

static void release_from_another_thread(void) {
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_MMAP, 0);
    for (int i = 0; i < 201; i++)
        acquire(checkpoint, B);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, release_here, checkpoint) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, B, 0, &err));
    release(checkpoint, B);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, B, &err));
    evict(checkpoint, B);
    counts_are(checkpoint, B, 200, 1, 1);
    st_close(checkpoint);
}

/* What is in use belongs to the checkpoint, not to a reference. */
static void close_one_reference(st_checkpoint *checkpoint, const way *way) {
    const unsigned char *a = acquire(checkpoint, A);
    CHECK(st_retain(checkpoint) == checkpoint);
    acquire(checkpoint, B);
    st_close(checkpoint);
    sums_are(checkpoint, 3000, way->copies ? 3000 : 0, 3000);
    CHECK(is_right(a, A));
    release(checkpoint, A);
    /* B is in use when the last reference is closed, which frees it all the same. */
}

static void close_leaves_what_is_in_use_to_the_last(void) {
    each_way(close_one_reference);
}

static void copy_that_cannot_be_read(void) {
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        const fixture *file = tensors_of("U16", 2, sizes, COUNT, 1);
        const char *path = fixture_write("cut.safetensors", file);
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        options.budget = 6000;
        st_checkpoint *checkpoint;
        const void *data = &data;
        OK(st_open(path, &options, &checkpoint, &err));
        use(checkpoint, A);
        CHECK(truncate(path, 100) == 0);
        FAILS(ST_ERR_TRUNCATED, st_acquire(checkpoint, C, &data, NULL, &err));
        SAYS("\"t2\"");
        FAILS(ST_ERR_TRUNCATED, st_tensor_ptr(checkpoint, C, &data, NULL, &err));
        CHECK(data == &data);
        FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, C, &err));
        sums_are(checkpoint, 0, 1000, 1000);
        counts_are(checkpoint, C, 0, 0, 0);
        /* What is held needs no file. */
        CHECK(is_right(acquire(checkpoint, A), A));
        fixture_write("cut.safetensors", file);
        CHECK(is_right(acquire(checkpoint, C), C));
        sums_are(checkpoint, 4000, 4000, 4000);
        st_close(checkpoint);
    }
}

static void prefetch_holds_nothing(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (size_t shift = 0; shift < 2; shift++) {
            st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, shift), fixture_storages[s], 0);
            const size_t wanted[] = {E, A, A, EMPTY}, beyond[] = {A, COUNT};
            OK(st_prefetch(checkpoint, wanted, LEN(wanted), &err));
            FAILS(ST_ERR_OUT_OF_RANGE, st_prefetch(checkpoint, beyond, LEN(beyond), &err));
            sums_are(checkpoint, 0, 0, 0);
            counts_are(checkpoint, ST_ALL, 0, 0, 0);
            CHECK(is_right(acquire(checkpoint, E), E));
            counts_are(checkpoint, E, 0, 1, 0);
            st_close(checkpoint);
        }
}

static void evict_frees_the_copy(void) {
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_READ, 0);
    use(checkpoint, A);
    acquire(checkpoint, B);
    OK(st_evict(checkpoint, A, 0, &err));
    sums_are(checkpoint, 2000, 2000, 2000);
    /* What is not held, or was never, needs no eviction. */
    OK(st_evict(checkpoint, A, ST_EVICT_PAGE_CACHE, &err));
    OK(st_evict(checkpoint, C, 0, &err));
    counts_are(checkpoint, ST_ALL, 0, 2, 1);
    FAILS(ST_ERR_IN_USE, st_evict(checkpoint, B, 0, &err));
    OK(st_evict(checkpoint, ST_ALL, 0, &err));
    sums_are(checkpoint, 2000, 2000, 2000);
    release(checkpoint, B);
    OK(st_evict(checkpoint, ST_ALL, ST_EVICT_PAGE_CACHE, &err));
    sums_are(checkpoint, 0, 0, 0);
    /* It is read anew. */
    CHECK(is_right(acquire(checkpoint, A), A));
    counts_are(checkpoint, A, 0, 2, 1);
    st_close(checkpoint);
}

static void set_budget_evicts_the_least_recently_used(void) {
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_READ, 0);
    use(checkpoint, A);
    use(checkpoint, B);
    use(checkpoint, C);
    OK(st_set_budget(checkpoint, 6000, &err));
    sums_are(checkpoint, 0, 6000, 6000);
    OK(st_set_budget(checkpoint, 5999, &err));
    CHECK(!is_held(checkpoint, A) && is_held(checkpoint, B) && is_held(checkpoint, C));
    CHECK(look(checkpoint, ST_ALL).budget == 5999 && look(checkpoint, C).budget == 5999);
    OK(st_set_budget(checkpoint, 3000, &err));
    CHECK(!is_held(checkpoint, B) && is_held(checkpoint, C));
    OK(st_set_budget(checkpoint, 0, &err));
    CHECK(is_held(checkpoint, C) && look(checkpoint, ST_ALL).budget == 0);
    OK(st_set_budget(checkpoint, 1, &err));
    sums_are(checkpoint, 0, 0, 0);
    counts_are(checkpoint, ST_ALL, 0, 3, 3);
    st_close(checkpoint);
}

static void residency_tells_one_tensor_and_all(void) {
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_READ, 0);
    acquire(checkpoint, A);
    use(checkpoint, C);
    use(checkpoint, C);
    st_residency_info info;
    OK(st_residency(checkpoint, A, &info, &err));
    CHECK(info.in_use_bytes == 1000 && info.copied_bytes == 1000 && info.charged_bytes == 1000);
    CHECK(info.resident_bytes == 1000 && info.hits == 0 && info.misses == 1 && info.evictions == 0);
    OK(st_residency(checkpoint, C, &info, &err));
    CHECK(info.in_use_bytes == 0 && info.copied_bytes == 3000 && info.charged_bytes == 3000);
    CHECK(info.resident_bytes == 3000 && info.hits == 1 && info.misses == 1);
    OK(st_residency(checkpoint, B, &info, &err));
    CHECK(info.copied_bytes == 0 && info.charged_bytes == 0 && info.resident_bytes == 0 && info.misses == 0);
    OK(st_residency(checkpoint, ST_ALL, &info, &err));
    CHECK(info.in_use_bytes == 1000 && info.copied_bytes == 4000 && info.charged_bytes == 4000);
    CHECK(info.resident_bytes == 4000 && info.hits == 1 && info.misses == 2 && info.evictions == 0);
    evict(checkpoint, C);
    OK(st_residency(checkpoint, ST_ALL, &info, &err));
    CHECK(info.copied_bytes == 1000 && info.resident_bytes == 1000 && info.evictions == 1);
    release(checkpoint, A);
    st_close(checkpoint);
}

enum { MANY = 20000 };

/* Their places are all the same: none is before or after another. */
static void many_tensors_without_bytes(void) {
    static char names[MANY][8];
    static fixture_tensor tensors[MANY + 2];
    for (size_t i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof(names[i]), "e%zu", i);
        tensors[i + 1] = (fixture_tensor){names[i], "F64", "[3,0]", 0, NULL};
    }
    tensors[0] = (fixture_tensor){"first", "U8", "[10000]", 10000, NULL};
    tensors[MANY + 1] = (fixture_tensor){"last", "U8", "[10000]", 10000, NULL};
    const fixture file = {tensors, MANY + 2, NULL, 0};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&file, fixture_storages[s], 0);
        const size_t step = test_is_instrumented() ? 100 : 1;
        size_t used = 0;
        set_budget(checkpoint, 1);
        for (size_t i = 1; i <= MANY; i += step, used++)
            CHECK((uintptr_t)acquire(checkpoint, i) % 8 == 0);
        st_residency_info all = look(checkpoint, ST_ALL);
        CHECK(all.in_use_bytes == 0 && all.charged_bytes == 0 && all.misses == used && all.evictions == 0);
        FAILS(ST_ERR_IN_USE, st_evict(checkpoint, 1, 0, &err));
        evict(checkpoint, ST_ALL);
        for (size_t i = 1; i <= MANY; i += step)
            release(checkpoint, i);
        FAILS(ST_ERR_INVALID_ARGUMENT, st_release(checkpoint, 1, &err));
        for (size_t i = 1; i <= MANY; i += 100)
            evict(checkpoint, i);
        evict(checkpoint, ST_ALL);
        CHECK(look(checkpoint, ST_ALL).evictions == used);
        set_budget(checkpoint, 10000);
        CHECK(fixture_is(acquire(checkpoint, MANY + 1), 10000, 10000));
        st_close(checkpoint);
    }
}

static void checkpoint_without_tensors(void) {
    const fixture none = {NULL, 0, NULL, 0};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&none, fixture_storages[s], 0);
        const void *data;
        evict(checkpoint, ST_ALL);
        OK(st_evict(checkpoint, ST_ALL, ST_EVICT_PAGE_CACHE, &err));
        set_budget(checkpoint, 1);
        sums_are(checkpoint, 0, 0, 0);
        OK(st_prefetch(checkpoint, NULL, 0, &err));
        FAILS(ST_ERR_OUT_OF_RANGE, st_acquire(checkpoint, 0, &data, NULL, &err));
        FAILS(ST_ERR_OUT_OF_RANGE, st_evict(checkpoint, 0, 0, &err));
        st_close(checkpoint);
    }
}

static st_checkpoint *before_fork;

static void use_in_child(void) {
    FAILS(ST_ERR_IN_USE, st_evict(before_fork, A, 0, &err));
    release(before_fork, A);
    evict(before_fork, ST_ALL);
    CHECK(is_right(acquire(before_fork, C), C));
    sums_are(before_fork, 3000, 3000, 3000);
    st_close(before_fork);
}

/* After a fork each process has its own account. */
static void fork_copies_the_account(void) {
    before_fork = fixture_open(tensors_of("U16", 2, sizes, COUNT, 1), ST_STORAGE_MMAP, 0);
    const unsigned char *a = acquire(before_fork, A);
    CHECK(test_in_child(use_in_child) == 0);
    CHECK(is_right(a, A));
    sums_are(before_fork, 1000, 1000, 1000);
    FAILS(ST_ERR_IN_USE, st_evict(before_fork, A, 0, &err));
    st_close(before_fork);
}

static const test_case cases[] = {
    CASE(nulls_are_refused),
    CASE(indices_beyond_are_refused),
    CASE(unknown_flags_are_refused),
    CASE(acquire_points_to_the_bytes),
    CASE(nothing_is_held_at_first),
    CASE(evict_takes_what_is_not_in_use),
    CASE(least_recently_used_goes_first),
    CASE(no_room_beside_what_is_in_use),
    CASE(budget_lowered_below_what_is_in_use),
    CASE(tensor_larger_than_the_budget),
    CASE(copies_pointed_to_stay),
    CASE(views_and_dlpack_over_copies_stay),
    CASE(read_needs_no_budget),
    CASE(budget_of_the_options),
    CASE(options_without_a_budget),
    CASE(lock_can_neither_evict_nor_have_a_budget),
    CASE(release_from_another_thread),
    CASE(close_leaves_what_is_in_use_to_the_last),
    CASE(copy_that_cannot_be_read),
    CASE(prefetch_holds_nothing),
    CASE(evict_frees_the_copy),
    CASE(set_budget_evicts_the_least_recently_used),
    CASE(residency_tells_one_tensor_and_all),
    CASE(many_tensors_without_bytes),
    CASE(checkpoint_without_tensors),
    CASE(fork_copies_the_account),
};

TEST_MAIN(cases)
