/* What the system holds: pages of a mapping and of the page cache, measured. What the library says of itself is in residency.c. */
#define _GNU_SOURCE

#include "residency.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

/* What the system maps at once, and keeps in the page cache as one, at most. */
enum { MIB = 1 << 20, BLOCK = 2 * MIB };

/* How many of the bytes lie in pages that are mapped into this process now. By a look of our own. */
static size_t mapped(const unsigned char *bytes, size_t len) {
    const size_t page = page_size();
    const uintptr_t start = (uintptr_t)bytes, stop = start + len;
    size_t sum = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    CHECK(fd >= 0);
    for (uintptr_t at = start / page * page; at < stop; at += page) {
        uint64_t entry;
        CHECK(pread(fd, &entry, 8, (off_t)(at / page * 8)) == 8);
        if (entry >> 63)
            sum += (at + page < stop ? at + page : stop) - (at > start ? at : start);
    }
    close(fd);
    return sum;
}

/* How many bytes of a file are in the page cache, from `start` on. */
static size_t cached(const char *path, size_t start, size_t len) {
    static unsigned char pages[1 << 16];
    const size_t page = page_size(), first = start / page * page, count = (start + len - first + page - 1) / page;
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && count <= sizeof(pages));
    unsigned char *map = mmap(NULL, start + len, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && mincore(map + first, start + len - first, pages) == 0);
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (pages[i] & 1) * page;
    munmap(map, start + len);
    close(fd);
    return sum;
}

/* Emulators take advice on memory and do nothing. */
static void needs_advice_on_memory(void) {
    const fixture *file = tensors_of("U8", 1, (const size_t[]){4 * page_size()}, 1, 0);
    int fd = open(fixture_write("probe", file), O_RDONLY);
    unsigned char *map = mmap(NULL, page_size(), PROT_READ, MAP_SHARED, fd, 0);
    CHECK(fd >= 0 && map != MAP_FAILED);
    touch(map, page_size());
    const size_t before = mapped(map, page_size());
    CHECK(madvise(map, page_size(), MADV_DONTNEED) == 0);
    const size_t after = mapped(map, page_size());
    munmap(map, page_size());
    close(fd);
    if (before == 0 || after != 0)
        SKIP("pages cannot be measured here");
}

/* Writes the data out, so that the page cache may let go of it, and makes it do so. */
static void drop_from_cache(const char *path) {
    struct stat stat;
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && fstat(fd, &stat) == 0 && fsync(fd) == 0);
    for (int i = 0; i < 50 && cached(path, 0, (size_t)stat.st_size) > 0; i++)
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    if (cached(path, 0, (size_t)stat.st_size) > 0)
        SKIP("files stay in the page cache here");
}

/* Waits until so many bytes are cached; two minutes at most. */
static bool gets_cached(const char *path, size_t start, size_t len, size_t at_least) {
    for (int i = 0; i < 24000; i++) {
        if (cached(path, start, len) >= at_least)
            return true;
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
    return false;
}

static uint64_t resident(const st_checkpoint *checkpoint, size_t index) {
    return look(checkpoint, index).resident_bytes;
}

static size_t start_of(const st_checkpoint *checkpoint, size_t index) {
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, index, &tensor, &err));
    return (size_t)tensor.file_offset;
}

/* Opens tensors of so many pages each, in halves; the first starts a page. */
static st_checkpoint *open_halves(const size_t *halves, size_t len, int32_t storage, uint32_t flags) {
    size_t nbytes[MOST_TENSORS];
    for (size_t i = 0; i < len; i++)
        nbytes[i] = halves[i] * page_size() / 2;
    return fixture_open(tensors_of("U8", 1, nbytes, len, 0), storage, flags);
}

static void touch_all(st_checkpoint *checkpoint) {
    for (size_t i = 0; i < st_len(checkpoint); i++)
        touch(pointer_to(checkpoint, i), size_of(checkpoint, i));
}

static void resident_bytes_follow_touches_and_evictions(void) {
    needs_advice_on_memory();
    const size_t halves[] = {80, 601, 33};
    st_checkpoint *checkpoint = open_halves(halves, 3, ST_STORAGE_MMAP, 0);
    const size_t size = size_of(checkpoint, 1);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    const unsigned char *data = acquire(checkpoint, 1);
    CHECK(resident(checkpoint, ST_ALL) == 0 && look(checkpoint, 1).charged_bytes == size);
    touch(data + 100, 1);
    CHECK(resident(checkpoint, 1) >= page_size());
    touch(data, size);
    CHECK(resident(checkpoint, 1) == size && mapped(data, size) == size);
    CHECK(resident(checkpoint, ST_ALL) >= size);
    release(checkpoint, 1);
    CHECK(resident(checkpoint, 1) == size);
    evict(checkpoint, 1);
    CHECK(resident(checkpoint, 1) == 0 && mapped(data, size) == 0);
    /* The pointer is as good as before, without being acquired. */
    CHECK(fixture_is(data, 80 * page_size() / 2, size));
    CHECK(resident(checkpoint, 1) == size && look(checkpoint, 1).charged_bytes == 0);
    /* Nor need it be acquired to be evicted. */
    evict(checkpoint, 1);
    CHECK(mapped(data, size) == 0);
    touch_all(checkpoint);
    evict(checkpoint, ST_ALL);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    CHECK(fixture_is(data, 80 * page_size() / 2, size));
    st_close(checkpoint);
}

static void pages_leave_to_make_room(void) {
    needs_advice_on_memory();
    const size_t nbytes[] = {4 * BLOCK, 4 * BLOCK, 4 * BLOCK}, size = nbytes[0];
    st_checkpoint *checkpoint = fixture_open(tensors_of("U8", 1, nbytes, 3, 0), ST_STORAGE_MMAP, 0);
    set_budget(checkpoint, size);
    const unsigned char *data[3];
    for (size_t i = 0; i < 3; i++) {
        data[i] = acquire(checkpoint, i);
        CHECK(fixture_is(data[i], i * size, size));
        release(checkpoint, i);
        CHECK(mapped(data[i], size) == size);
        /* The edges of the others may have come back with it. */
        for (size_t other = 0; other < i; other++)
            CHECK(mapped(data[other], size) <= BLOCK);
    }
    set_budget(checkpoint, 1);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    st_close(checkpoint);
}

/* One touch brings in more than its page; all of that leaves with the tensor. */
static void what_the_system_added_leaves_too(void) {
    needs_advice_on_memory();
    size_t halves[MOST_TENSORS];
    for (size_t i = 0; i < MOST_TENSORS; i++)
        halves[i] = 17;
    st_checkpoint *checkpoint = open_halves(halves, MOST_TENSORS, ST_STORAGE_MMAP, 0);
    for (size_t i = 0; i < MOST_TENSORS; i++) {
        touch(acquire(checkpoint, i) + size_of(checkpoint, i) - 1, 1);
        release(checkpoint, i);
        const uint64_t before = resident(checkpoint, ST_ALL);
        evict(checkpoint, i);
        CHECK(before >= page_size() && resident(checkpoint, ST_ALL) == 0);
    }
    st_close(checkpoint);
}

static void pages_of_neighbours_in_use_stay(void) {
    needs_advice_on_memory();
    /* t0 and t1 share a page, and t1 and t2. */
    const size_t halves[] = {5, 6, 5}, page = page_size(), half = page / 2;
    for (int turn = 0; turn < 4; turn++) {
        st_checkpoint *checkpoint = open_halves(halves, 3, ST_STORAGE_MMAP, 0);
        const size_t neighbour = turn % 2 ? 2 : 0, size = size_of(checkpoint, neighbour);
        touch_all(checkpoint);
        const unsigned char *data = acquire(checkpoint, neighbour);
        if (turn < 2) {
            evict(checkpoint, 1);
        } else {
            /* It goes to make room. */
            use(checkpoint, 1);
            set_budget(checkpoint, size);
        }
        CHECK(resident(checkpoint, neighbour) == size && mapped(data, size) == size);
        CHECK(resident(checkpoint, 1) == half);
        evict(checkpoint, ST_ALL);
        CHECK(resident(checkpoint, neighbour) == size && resident(checkpoint, 1) == half);
        CHECK(resident(checkpoint, ST_ALL) == size + half);
        /* Released it is still held, and so is its page. */
        release(checkpoint, neighbour);
        evict(checkpoint, 1);
        CHECK(resident(checkpoint, neighbour) == size && resident(checkpoint, 1) == half);
        evict(checkpoint, neighbour);
        CHECK(resident(checkpoint, ST_ALL) == 0);
        st_close(checkpoint);
    }
}

/* A neighbour in use that lies in a copy of its own counts all the same: nobody has to know better. */
static void many_tensors_in_one_page(void) {
    needs_advice_on_memory();
    size_t nbytes[MOST_TENSORS];
    for (size_t i = 0; i < MOST_TENSORS; i++)
        nbytes[i] = page_size() / MOST_TENSORS;
    st_checkpoint *checkpoint = fixture_open(tensors_of("U8", 1, nbytes, MOST_TENSORS, 0), ST_STORAGE_MMAP, 0);
    touch_all(checkpoint);
    acquire(checkpoint, 20);
    for (size_t i = 0; i < MOST_TENSORS; i++)
        if (i != 20)
            evict(checkpoint, i);
    evict(checkpoint, ST_ALL);
    CHECK(resident(checkpoint, ST_ALL) >= page_size() && resident(checkpoint, 20) == nbytes[20]);
    release(checkpoint, 20);
    evict(checkpoint, 20);
    for (size_t i = 0; i < MOST_TENSORS; i++) {
        touch(pointer_to(checkpoint, i), nbytes[i]);
        evict(checkpoint, i);
        CHECK(resident(checkpoint, ST_ALL) == 0);
    }
    st_close(checkpoint);
}

/* A tensor without bytes lies between others, and takes nothing of theirs with it. */
static void evict_of_nothing_takes_no_pages(void) {
    needs_advice_on_memory();
    const size_t halves[] = {0, 8, 0, 8, 0, 8, 0};
    st_checkpoint *checkpoint = open_halves(halves, 7, ST_STORAGE_MMAP, 0);
    touch_all(checkpoint);
    for (size_t i = 1; i < 7; i += 2)
        acquire(checkpoint, i);
    const uint64_t before = resident(checkpoint, ST_ALL);
    for (size_t i = 0; i < 7; i += 2) {
        use(checkpoint, i);
        evict(checkpoint, i);
        evict(checkpoint, i);
    }
    CHECK(resident(checkpoint, ST_ALL) == before && before >= 12 * page_size());
    st_close(checkpoint);
}

static void copies_are_resident_as_a_whole(void) {
    const size_t halves[] = {100, 200};
    st_checkpoint *checkpoint = open_halves(halves, 2, ST_STORAGE_READ, 0);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    const size_t size = size_of(checkpoint, 1);
    acquire(checkpoint, 1);
    CHECK(resident(checkpoint, 1) == size && resident(checkpoint, 0) == 0 && resident(checkpoint, ST_ALL) == size);
    release(checkpoint, 1);
    evict(checkpoint, 1);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    st_close(checkpoint);
}

/* A misaligned tensor of a mapping is read into its copy by read(2): it must not be in memory twice on this process's account. */
static void copies_of_a_mapping_touch_no_page_of_it(void) {
    needs_advice_on_memory();
    const size_t nbytes[] = {100 * page_size(), 200 * page_size()};
    st_checkpoint *checkpoint = fixture_open(tensors_of("U16", 2, nbytes, 2, 1), ST_STORAGE_MMAP, 0);
    CHECK(fixture_is(acquire(checkpoint, 1), nbytes[0], nbytes[1]));
    CHECK(resident(checkpoint, ST_ALL) == nbytes[1] && resident(checkpoint, 1) == nbytes[1]);
    release(checkpoint, 1);
    evict(checkpoint, 1);
    CHECK(resident(checkpoint, ST_ALL) == 0);
    st_close(checkpoint);
}

static st_checkpoint *without_descriptors;

static void look_without_descriptors(void) {
    const struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(resident(without_descriptors, 0) == UINT64_MAX);
    const st_residency_info all = look(without_descriptors, ST_ALL);
    CHECK(all.resident_bytes == UINT64_MAX && all.charged_bytes == size_of(without_descriptors, 0));
    evict(without_descriptors, ST_ALL);
}

static void resident_bytes_the_system_does_not_tell(void) {
    if (test_is_instrumented())
        SKIP("valgrind keeps descriptors for itself");
    const size_t halves[] = {4, 4};
    without_descriptors = open_halves(halves, 2, ST_STORAGE_MMAP, 0);
    use(without_descriptors, 0);
    CHECK(test_in_child(look_without_descriptors) == 0);
    st_close(without_descriptors);
}

static void populate_is_resident_and_can_be_evicted(void) {
    needs_advice_on_memory();
    const size_t halves[] = {300, 300};
    st_checkpoint *checkpoint = open_halves(halves, 2, ST_STORAGE_MMAP, ST_OPEN_POPULATE);
    const size_t size = size_of(checkpoint, 0);
    CHECK(look(checkpoint, ST_ALL).charged_bytes == 0);
    if (resident(checkpoint, 0) == 0)
        SKIP("this kernel populates the page cache alone");
    CHECK(resident(checkpoint, 0) == size && resident(checkpoint, 1) == size);
    acquire(checkpoint, 0);
    evict(checkpoint, 1);
    CHECK(resident(checkpoint, 0) == size && resident(checkpoint, 1) == 0);
    st_close(checkpoint);
}

static void write_all(unsigned char *bytes, size_t len, unsigned char value) {
    for (size_t at = 0; at < len; at += 64)
        bytes[at] = value;
}

static bool was_written(const unsigned char *bytes, size_t at, size_t len, unsigned char value) {
    for (size_t i = 0; i < len; i += 64)
        if (bytes[i] != value || !fixture_is(bytes + i + 1, at + i + 1, len - i > 64 ? 63 : len - i - 1))
            return false;
    return true;
}

static void written_bytes_survive_evictions(void) {
    const size_t nbytes[] = {10 * page_size(), 3 * page_size() + 100, 7 * page_size()};
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (size_t shift = 0; shift < 2; shift++) {
            const fixture *file = tensors_of("U16", 2, nbytes, 3, shift);
            st_checkpoint *checkpoint = fixture_open(file, fixture_storages[s], ST_OPEN_COPY_ON_WRITE);
            unsigned char *first = (unsigned char *)(uintptr_t)acquire(checkpoint, 0);
            unsigned char *second = (unsigned char *)(uintptr_t)acquire(checkpoint, 1);
            unsigned char *read = malloc(nbytes[0]);
            write_all(first, nbytes[0], 0xee);
            write_all(second, nbytes[1], 0xdd);
            release(checkpoint, 0);
            release(checkpoint, 1);
            for (uint32_t flags = 0; flags <= ST_EVICT_PAGE_CACHE; flags++) {
                OK(st_evict(checkpoint, 0, flags, &err));
                OK(st_evict(checkpoint, ST_ALL, flags, &err));
                set_budget(checkpoint, 1);
                set_budget(checkpoint, 0);
                CHECK(acquire(checkpoint, 0) == first && was_written(first, 0, nbytes[0], 0xee));
                CHECK(acquire(checkpoint, 1) == second && was_written(second, nbytes[0], nbytes[1], 0xdd));
                release(checkpoint, 0);
                release(checkpoint, 1);
            }
            CHECK(fixture_is(acquire(checkpoint, 2), nbytes[0] + nbytes[1], nbytes[2]));
            OK(st_tensor_read(checkpoint, 0, NULL, 0, read, nbytes[0], &err));
            CHECK(fixture_is(read, 0, nbytes[0]));
            free(read);
            st_close(checkpoint);
        }
}

/* What the threads of a round share. */
static struct {
    st_checkpoint *checkpoint;
    unsigned char *bytes;
    size_t len;
    volatile bool done;
} writing;

static void *write_on(void *nothing) {
    (void)nothing;
    for (int round = 0; round < 100; round++)
        for (size_t at = 0; at < writing.len; at += 512) {
            volatile unsigned char *byte = writing.bytes + at;
            *byte = (unsigned char)(*byte + 1);
        }
    writing.done = true;
    return NULL;
}

static void written_bytes_survive_evictions_meanwhile(void) {
    const size_t nbytes[] = {64 * page_size(), 64 * page_size()};
    for (size_t shift = 0; shift < 2; shift++)
        for (int in_use = 0; in_use < 2; in_use++) {
            writing.checkpoint = fixture_open(tensors_of("U16", 2, nbytes, 2, shift), ST_STORAGE_MMAP, ST_OPEN_COPY_ON_WRITE);
            writing.bytes = (unsigned char *)(uintptr_t)acquire(writing.checkpoint, 1);
            writing.len = nbytes[1];
            writing.done = false;
            /* The pointer stays valid after the release: the caller may write on. */
            if (!in_use)
                release(writing.checkpoint, 1);
            pthread_t writer;
            CHECK(pthread_create(&writer, NULL, write_on, NULL) == 0);
            for (size_t i = 0; i < 100 || !writing.done; i++) {
                OK(st_evict(writing.checkpoint, ST_ALL, i % 7 == 0 ? ST_EVICT_PAGE_CACHE : 0, &err));
                evict(writing.checkpoint, 0);
                CHECK(st_evict(writing.checkpoint, 1, 0, &err) == (in_use ? ST_ERR_IN_USE : ST_OK));
            }
            CHECK(pthread_join(writer, NULL) == 0);
            for (size_t at = 0; at < writing.len; at++) {
                const unsigned char was = fixture_byte(nbytes[0] + at);
                CHECK(writing.bytes[at] == (unsigned char)(at % 512 ? was : was + 100));
            }
            st_close(writing.checkpoint);
        }
}

/* Tensors of a MiB: larger than what the system reads ahead by itself. The last is as large as several. */
enum { LARGE = 24 * MIB };
static const size_t mebibytes[] = {MIB, MIB, MIB, MIB, LARGE};

static const char *write_mebibytes(void) {
    const char *path = fixture_write("mebibytes.safetensors", tensors_of("U8", 1, mebibytes, 5, 0));
    drop_from_cache(path);
    return path;
}

/* Those of its bytes that are in whole pages. */
static size_t cached_of(st_checkpoint *checkpoint, const char *path, size_t index) {
    return cached(path, start_of(checkpoint, index), size_of(checkpoint, index));
}

static void evict_drops_the_page_cache_when_asked_to(void) {
    const char *path = write_mebibytes();
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        for (size_t i = 0; i < 5; i++)
            touch(acquire(checkpoint, i), mebibytes[i]);
        for (size_t i = 1; i < 5; i++)
            release(checkpoint, i);
        CHECK(cached_of(checkpoint, path, 4) == LARGE);
        evict(checkpoint, 4);
        CHECK(cached_of(checkpoint, path, 4) == LARGE);
        /* It is not held any more, which is no reason to leave it there. Its neighbour is: what they share as one stays. */
        OK(st_evict(checkpoint, 4, ST_EVICT_PAGE_CACHE, &err));
        CHECK(cached_of(checkpoint, path, 4) <= BLOCK);
        CHECK(cached_of(checkpoint, path, 1) == MIB && cached_of(checkpoint, path, 2) == MIB);
        OK(st_evict(checkpoint, ST_ALL, ST_EVICT_PAGE_CACHE, &err));
        CHECK(cached_of(checkpoint, path, 2) == 0 && cached_of(checkpoint, path, 4) == 0);
        /* t0 is in use: of a mapping its pages stay. */
        CHECK(storage == ST_STORAGE_READ || cached_of(checkpoint, path, 0) == MIB);
        release(checkpoint, 0);
        OK(st_evict(checkpoint, ST_ALL, ST_EVICT_PAGE_CACHE, &err));
        CHECK(cached_of(checkpoint, path, 0) == 0);
        CHECK(fixture_is(acquire(checkpoint, 1), MIB, MIB));
        st_close(checkpoint);
        drop_from_cache(path);
    }
}

/* As a loader does that reads a file once, from its start. */
static void evict_one_by_one_empties_the_page_cache(void) {
    const char *path = write_mebibytes();
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        for (size_t i = 0; i < 5; i++) {
            touch(acquire(checkpoint, i), mebibytes[i]);
            release(checkpoint, i);
            OK(st_evict(checkpoint, i, ST_EVICT_PAGE_CACHE, &err));
        }
        /* What was read ahead, and what came back into this process with the next tensor. */
        CHECK(cached(path, 0, start_of(checkpoint, 4) + LARGE) <= 2 * BLOCK);
        st_close(checkpoint);
    }
}

/* Readers of the rest of the file should not have to go to the disk because a tensor between them has left. */
static void evict_leaves_the_cache_of_neighbours_held(void) {
    const size_t page = page_size(), nbytes[] = {64 * page, 6 * page, 64 * page};
    const char *path = fixture_write("neighbours.safetensors", tensors_of("U8", 1, nbytes, 3, 0));
    drop_from_cache(path);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_MMAP, 0);
    /* Page by page, from the end: a folio of several pages leaves as a whole or not at all. */
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) == 0);
    for (size_t i = 134; i-- > 0;) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, (off_t)(start_of(checkpoint, 0) + i * page)) == 1);
    }
    close(fd);
    use(checkpoint, 0);
    use(checkpoint, 2);
    use(checkpoint, 1);
    OK(st_evict(checkpoint, 1, ST_EVICT_PAGE_CACHE, &err));
    CHECK(cached_of(checkpoint, path, 1) == 0);
    CHECK(cached_of(checkpoint, path, 0) == nbytes[0] && cached_of(checkpoint, path, 2) == nbytes[2]);
    st_close(checkpoint);
}

static void prefetch_brings_tensors_into_the_page_cache(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = write_mebibytes();
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        /* Of a large tensor all, not what the system takes at once. */
        const size_t wanted[] = {4, 2, 4};
        OK(st_prefetch(checkpoint, wanted, 3, &err));
        CHECK(gets_cached(path, start_of(checkpoint, 4), LARGE, LARGE));
        CHECK(gets_cached(path, start_of(checkpoint, 2), MIB, MIB));
        CHECK(cached_of(checkpoint, path, 0) <= MIB / 2);
        /* Nothing is held. */
        const st_residency_info all = look(checkpoint, ST_ALL);
        CHECK(all.charged_bytes == 0 && all.resident_bytes == 0 && all.misses == 0 && all.copied_bytes == 0);
        st_close(checkpoint);
    }
}

static void prefetch_asks_for_no_more_than_the_budget(void) {
    const char *path = write_mebibytes();
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_MMAP, 0);
    const size_t wanted[] = {2, 4, 0};
    set_budget(checkpoint, 2 * MIB);
    OK(st_prefetch(checkpoint, wanted, 3, &err));
    CHECK(gets_cached(path, start_of(checkpoint, 2), MIB, MIB));
    CHECK(gets_cached(path, start_of(checkpoint, 4), MIB, MIB));
    CHECK(cached_of(checkpoint, path, 4) <= MIB + MIB / 4);
    CHECK(cached_of(checkpoint, path, 0) <= MIB / 4);
    st_close(checkpoint);
}

static void prefetch_of_nothing_reads_nothing(void) {
    const size_t page = page_size(), nbytes[] = {0, 256 * page, 0};
    const char *path = fixture_write("nothing.safetensors", tensors_of("U8", 1, nbytes, 3, 0));
    drop_from_cache(path);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_MMAP, 0);
    drop_from_cache(path);
    const size_t empty[] = {0, 2, 0, 0, 2}, beyond[] = {1, 3};
    OK(st_prefetch(checkpoint, NULL, 0, &err));
    OK(st_prefetch(checkpoint, empty, 0, &err));
    OK(st_prefetch(checkpoint, empty, 5, &err));
    FAILS(ST_ERR_OUT_OF_RANGE, st_prefetch(checkpoint, beyond, 2, &err));
    SAYS("3");
    CHECK(cached_of(checkpoint, path, 1) == 0);
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(resident_bytes_follow_touches_and_evictions),
    CASE(pages_leave_to_make_room),
    CASE(what_the_system_added_leaves_too),
    CASE(pages_of_neighbours_in_use_stay),
    CASE(many_tensors_in_one_page),
    CASE(evict_of_nothing_takes_no_pages),
    CASE(copies_are_resident_as_a_whole),
    CASE(copies_of_a_mapping_touch_no_page_of_it),
    CASE(resident_bytes_the_system_does_not_tell),
    CASE(populate_is_resident_and_can_be_evicted),
    CASE(written_bytes_survive_evictions),
    CASE(written_bytes_survive_evictions_meanwhile),
    CASE(evict_drops_the_page_cache_when_asked_to),
    CASE(evict_one_by_one_empties_the_page_cache),
    CASE(evict_leaves_the_cache_of_neighbours_held),
    CASE(prefetch_brings_tensors_into_the_page_cache),
    CASE(prefetch_asks_for_no_more_than_the_budget),
    CASE(prefetch_of_nothing_reads_nothing),
};

TEST_MAIN(cases)
