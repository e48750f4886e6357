/*
 * Threads that acquire, compare and release, under a budget that does not hold what they want, while others evict, change the budget and
 * look. What is held must be right, and the accounts must add up when all is done.
 */
#define _GNU_SOURCE

#include "residency.h"

#include <pthread.h>

enum { WORKERS = 12, OTHERS = 4, THREADS = WORKERS + OTHERS, TENSORS = 48, MOST_HELD = 3 };

/* What the threads of a round share. */
static struct {
    st_checkpoint *checkpoint;
    size_t nbytes[TENSORS], start[TENSORS];
    uint64_t budget;
    pthread_barrier_t begin;
    bool pointers; /* some tensors are pointed to as well, for ever */
} shared;

static size_t rounds(void) {
    return test_is_instrumented() ? 60 : 3000;
}

/* xorshift64*. Each thread has its own numbers, the same in every run. */
static size_t below(uint64_t *state, size_t limit) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (size_t)((*state * 0x2545f4914f6cdd1dull) >> 33) % limit;
}

static bool is_right(const void *data, size_t index) {
    return fixture_is(data, shared.start[index], shared.nbytes[index]);
}

/* Holds up to three tensors at once, lets go of them in any order, and looks at each when it comes and when it goes. */
static void work(uint64_t *state) {
    size_t held[MOST_HELD], len = 0;
    const void *data[MOST_HELD];
    for (size_t round = 0; round < rounds(); round++) {
        if (len < MOST_HELD && below(state, 2)) {
            const size_t index = below(state, TENSORS);
            size_t nbytes = 77;
            const st_status status = st_acquire(shared.checkpoint, index, &data[len], &nbytes, &err);
            if (status == ST_ERR_BUDGET)
                continue;
            CHECK(status == ST_OK && nbytes == shared.nbytes[index] && is_right(data[len], index));
            held[len++] = index;
            FAILS(ST_ERR_IN_USE, st_evict(shared.checkpoint, index, 0, &err));
        } else if (len > 0) {
            const size_t which = below(state, len);
            CHECK(is_right(data[which], held[which]));
            release(shared.checkpoint, held[which]);
            held[which] = held[--len];
            data[which] = data[len];
        }
    }
    while (len-- > 0) {
        CHECK(is_right(data[len], held[len]));
        release(shared.checkpoint, held[len]);
    }
}

static void disturb(uint64_t *state) {
    for (size_t round = 0; round < rounds(); round++) {
        const size_t index = below(state, TENSORS), others[] = {below(state, TENSORS), index};
        const uint32_t flags = below(state, 8) == 0 ? ST_EVICT_PAGE_CACHE : 0;
        switch (below(state, 8)) {
        case 0:
        case 1: {
            const st_status status = st_evict(shared.checkpoint, index, flags, &err);
            CHECK(status == ST_OK || status == ST_ERR_IN_USE);
            break;
        }
        case 2:
            OK(st_evict(shared.checkpoint, ST_ALL, flags, &err));
            break;
        case 3:
            set_budget(shared.checkpoint, below(state, 4) == 0 ? 0 : 1 + below(state, 2 * shared.budget));
            break;
        case 4: {
            const st_residency_info one = look(shared.checkpoint, index);
            CHECK(one.in_use_bytes <= shared.nbytes[index] && one.charged_bytes <= shared.nbytes[index]);
            CHECK(one.copied_bytes <= shared.nbytes[index]);
            break;
        }
        case 5: {
            const st_residency_info all = look(shared.checkpoint, ST_ALL);
            CHECK(all.evictions <= all.misses);
            break;
        }
        case 6:
            OK(st_prefetch(shared.checkpoint, others, 2, &err));
            break;
        default:
            CHECK(st_retain(shared.checkpoint) == shared.checkpoint);
            if (shared.pointers && below(state, 50) == 0) {
                const void *data;
                const st_status status = st_tensor_ptr(shared.checkpoint, index, &data, NULL, &err);
                CHECK(status == ST_ERR_BUDGET || (status == ST_OK && is_right(data, index)));
            }
            st_close(shared.checkpoint);
        }
    }
}

static void *run_thread(void *number) {
    uint64_t state = 0x9e3779b97f4a7c15ull * ((size_t)number + 1);
    pthread_barrier_wait(&shared.begin);
    if ((size_t)number < WORKERS)
        work(&state);
    else
        disturb(&state);
    return NULL;
}

/* Sizes from nothing over parts of a page to many pages, so that most tensors share pages with others. */
static const fixture *file_of(size_t shift) {
    static const size_t some[] = {0, 2, 300, 4096, 1000, 20000, 70000, 12};
    for (size_t i = 0, at = 0; i < TENSORS; at += shared.nbytes[i], i++) {
        shared.nbytes[i] = some[i % LEN(some)];
        shared.start[i] = at;
    }
    shared.budget = 300000;
    return tensors_of("U16", 2, shared.nbytes, TENSORS, shift);
}

static void accounts_are_settled(uint32_t flags) {
    st_residency_info all = look(shared.checkpoint, ST_ALL);
    const bool is_writable = flags & ST_OPEN_COPY_ON_WRITE;
    CHECK(all.misses >= all.evictions);
    CHECK(shared.pointers || all.in_use_bytes == 0);
    set_budget(shared.checkpoint, shared.budget);
    all = look(shared.checkpoint, ST_ALL);
    CHECK(all.charged_bytes <= shared.budget || all.charged_bytes == all.in_use_bytes || is_writable);
    evict(shared.checkpoint, ST_ALL);
    all = look(shared.checkpoint, ST_ALL);
    CHECK(all.charged_bytes == (is_writable ? all.copied_bytes : all.in_use_bytes));
    uint64_t charged = 0;
    for (size_t i = 0; i < TENSORS; i++) {
        const st_residency_info one = look(shared.checkpoint, i);
        FAILS(ST_ERR_INVALID_ARGUMENT, st_release(shared.checkpoint, i, &err));
        CHECK(one.in_use_bytes == 0 || one.in_use_bytes == one.charged_bytes);
        CHECK(one.misses - one.evictions == (one.charged_bytes > 0) || shared.nbytes[i] == 0 || is_writable);
        charged += one.charged_bytes;
    }
    CHECK(charged == all.charged_bytes);
    /* The whole budget can be had: nothing of it was lost on the way. */
    set_budget(shared.checkpoint, 0);
    for (size_t i = 0; i < TENSORS; i++)
        CHECK(is_right(acquire(shared.checkpoint, i), i));
    CHECK(look(shared.checkpoint, ST_ALL).charged_bytes == look(shared.checkpoint, ST_ALL).in_use_bytes);
}

static void run(int32_t storage, uint32_t flags, size_t shift) {
    shared.checkpoint = fixture_open(file_of(shift), storage, flags);
    set_budget(shared.checkpoint, shared.budget);
    pthread_t ids[THREADS];
    CHECK(pthread_barrier_init(&shared.begin, NULL, THREADS) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&ids[i], NULL, run_thread, (void *)i) == 0);
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_join(ids[i], NULL) == 0);
    pthread_barrier_destroy(&shared.begin);
    accounts_are_settled(flags);
    st_close(shared.checkpoint);
}

static void mapped_in_place(void) {
    run(ST_STORAGE_MMAP, 0, 0);
}

static void mapped_and_misaligned(void) {
    run(ST_STORAGE_MMAP, 0, 1);
}

static void read_into_copies(void) {
    run(ST_STORAGE_READ, 0, 0);
}

static void memory_in_place_and_misaligned(void) {
    run(ST_STORAGE_MEMORY, 0, 0);
    run(ST_STORAGE_MEMORY, 0, 1);
}

static void copy_on_write(void) {
    run(ST_STORAGE_MMAP, ST_OPEN_COPY_ON_WRITE, 0);
    run(ST_STORAGE_MMAP, ST_OPEN_COPY_ON_WRITE, 1);
    run(ST_STORAGE_READ, ST_OPEN_COPY_ON_WRITE, 0);
}

static void some_are_pointed_to_as_well(void) {
    shared.pointers = true;
    run(ST_STORAGE_READ, 0, 0);
    run(ST_STORAGE_MMAP, 0, 1);
    shared.pointers = false;
}

static void *acquire_all(void *number) {
    pthread_barrier_wait(&shared.begin);
    for (size_t i = 0; i < TENSORS; i++) {
        const size_t index = (i + (size_t)number) % TENSORS;
        CHECK(is_right(acquire(shared.checkpoint, index), index));
    }
    return NULL;
}

/* However many ask for a tensor at once, it is read once. */
static void all_ask_for_the_same_at_first(void) {
    for (size_t round = 0; round < (test_is_instrumented() ? 3 : 100); round++) {
        shared.checkpoint = fixture_open(file_of(1), ST_STORAGE_MMAP, 0);
        pthread_t ids[THREADS];
        CHECK(pthread_barrier_init(&shared.begin, NULL, THREADS) == 0);
        for (size_t i = 0; i < THREADS; i++)
            CHECK(pthread_create(&ids[i], NULL, acquire_all, (void *)(i % 4)) == 0);
        for (size_t i = 0; i < THREADS; i++)
            CHECK(pthread_join(ids[i], NULL) == 0);
        pthread_barrier_destroy(&shared.begin);
        for (size_t i = 0; i < TENSORS; i++) {
            const st_residency_info one = look(shared.checkpoint, i);
            CHECK(one.misses == 1 && one.hits == THREADS - 1 && one.evictions == 0);
            for (size_t t = 0; t < THREADS; t++)
                release(shared.checkpoint, i);
        }
        CHECK(look(shared.checkpoint, ST_ALL).in_use_bytes == 0);
        st_close(shared.checkpoint);
    }
}

static const test_case cases[] = {
    CASE(mapped_in_place),
    CASE(mapped_and_misaligned),
    CASE(read_into_copies),
    CASE(memory_in_place_and_misaligned),
    CASE(copy_on_write),
    CASE(some_are_pointed_to_as_well),
    CASE(all_ask_for_the_same_at_first),
};

TEST_MAIN(cases)
