/*
 * What reading a slice costs: calls of the system, and bytes. This program counts them by defining the calls itself, for the shared
 * library to find, as fault.c does.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t calls, bytes;

/* The system's own definition of a call. */
static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    CHECK(function);
    return function;
}

static ssize_t counted(ssize_t n) {
    calls++;
    bytes += n > 0 ? (size_t)n : 0;
    return n;
}

ssize_t pread64(int fd, void *dst, size_t len, off64_t offset) {
    ssize_t (*next)(int, void *, size_t, off64_t);
    *(void **)&next = real("pread64");
    return counted(next(fd, dst, len, offset));
}

ssize_t pread(int fd, void *dst, size_t len, off_t offset) {
    ssize_t (*next)(int, void *, size_t, off_t);
    *(void **)&next = real("pread");
    return counted(next(fd, dst, len, offset));
}

ssize_t preadv(int fd, const struct iovec *to, int count, off_t offset) {
    ssize_t (*next)(int, const struct iovec *, int, off_t);
    *(void **)&next = real("preadv");
    return counted(next(fd, to, count, offset));
}

ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t offset) {
    ssize_t (*next)(int, const struct iovec *, int, off64_t);
    *(void **)&next = real("preadv64");
    return counted(next(fd, to, count, offset));
}

/* Opening reads this much of a file at first. */
enum { FIRST_READ = 8192 };

/* A matrix of BF16. Sparse, but for every 256th row. */
enum { SIDE = 4096, ROW = 2 * SIDE, FILLED = 256, RANKS = 4 };

static void write_matrix(const char *path, const char *name) {
    char header[256];
    int n = snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]}}", name, SIDE,
                     SIDE, SIDE * ROW);
    const unsigned char prefix[8] = {(unsigned char)n};
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0 && write(fd, prefix, 8) == 8 && write(fd, header, (size_t)n) == n);
    CHECK(ftruncate(fd, 8 + n + (off_t)SIDE * ROW) == 0);
    unsigned char row[ROW];
    for (off_t r = 0; r < SIDE; r += FILLED) {
        for (size_t i = 0; i < ROW; i++)
            row[i] = fixture_byte((size_t)r * ROW + i);
        CHECK(pwrite(fd, row, ROW, 8 + n + r * ROW) == ROW);
    }
    close(fd);
}

/* Reads a slice, counting. It is to be freed. */
static unsigned char *read_counted(st_checkpoint *checkpoint, size_t index, const st_range *ranges, size_t rank, size_t nbytes) {
    unsigned char *dst = malloc(nbytes);
    CHECK(dst);
    memset(dst, 0xaa, nbytes);
    calls = bytes = 0;
    OK(st_tensor_read(checkpoint, index, ranges, rank, dst, nbytes, &err));
    CHECK(calls > 0 && bytes >= nbytes);
    return dst;
}

/* Rows and columns of the matrix: what was filled is there, and the rest is zero. */
static void check_rows(const unsigned char *got, const st_range rows, const st_range columns) {
    const size_t width = 2 * (size_t)(columns.stop - columns.start);
    static const unsigned char zeros[ROW];
    for (size_t r = rows.start; r < rows.stop; r++, got += width)
        CHECK(r % FILLED == 0 ? fixture_is(got, r * ROW + 2 * (size_t)columns.start, width) : memcmp(got, zeros, width) == 0);
}

/* Runs with the matrix alone and as one of two shards, as mapped and as read. */
static void each_matrix(void (*test)(st_checkpoint *, size_t)) {
    static const fixture_tensor tensor = {"first", "U8", "[3]", 3, NULL};
    static const fixture first = {&tensor, 1, NULL, 0};
    const char *folder = fixture_path("matrices");
    CHECK(mkdir(folder, 0755) == 0 || errno == EEXIST); /* made by the case before */
    const char *alone = fixture_path("matrix.safetensors");
    write_matrix(alone, "matrix");
    fixture_write("matrices/m-1-of-2.safetensors", &first);
    write_matrix(fixture_path("matrices/m-2-of-2.safetensors"), "matrix");
    const char *const paths[] = {alone, folder};
    for (size_t p = 0; p < LEN(paths); p++)
        for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.storage = storage;
            st_checkpoint *checkpoint;
            size_t index;
            calls = bytes = 0;
            OK(st_open(paths[p], &options, &checkpoint, &err));
            /* One read of the start of each file, which has all of its header. */
            CHECK(calls == st_shard_len(checkpoint) && bytes <= FIRST_READ * st_shard_len(checkpoint));
            CHECK(st_find(checkpoint, "matrix", &index) == ST_OK && index == p);
            test(checkpoint, index);
            st_close(checkpoint);
        }
}

static void read_rows_of_rank_1(st_checkpoint *checkpoint, size_t index) {
    const st_range rows = {SIDE / RANKS, 2 * SIDE / RANKS}, all = {0, SIDE};
    const size_t needed = (size_t)SIDE * ROW / RANKS;
    unsigned char *got = read_counted(checkpoint, index, &rows, 1, needed);
    CHECK(bytes <= needed + needed / 50 && calls <= 8);
    check_rows(got, rows, all);
    free(got);
}

static void rows_of_one_of_four_ranks(void) {
    each_matrix(read_rows_of_rank_1);
}

static void read_columns_of_rank_1(st_checkpoint *checkpoint, size_t index) {
    const st_range ranges[] = {{0, SIDE}, {SIDE / RANKS, 2 * SIDE / RANKS}};
    const size_t needed = (size_t)SIDE * ROW / RANKS, gap = ROW - ROW / RANKS;
    unsigned char *got = read_counted(checkpoint, index, ranges, 2, needed);
    CHECK(calls <= SIDE / 20);
    /* The gaps between rows, each no more than the 16 KiB of the header's promise; nothing before the first and after the last. */
    CHECK(gap <= 16 * 1024 && bytes <= needed + (SIDE - 1) * gap);
    check_rows(got, ranges[0], ranges[1]);
    free(got);
}

static void columns_of_one_of_four_ranks(void) {
    each_matrix(read_columns_of_rank_1);
}

static void read_narrow_columns(st_checkpoint *checkpoint, size_t index) {
    /* 64 times 126 bytes is less than the gap to the next row, 64 times 128 is not. */
    const size_t widths[] = {1, 63, 64};
    for (size_t w = 0; w < LEN(widths); w++) {
        const st_range ranges[] = {{0, SIDE}, {1000, 1000 + widths[w]}};
        const size_t needed = 2 * widths[w] * SIDE;
        unsigned char *got = read_counted(checkpoint, index, ranges, 2, needed);
        if (widths[w] < 64)
            CHECK(calls == SIDE && bytes == needed);
        else
            CHECK(calls <= SIDE / 20 && bytes <= (size_t)SIDE * ROW);
        check_rows(got, ranges[0], ranges[1]);
        free(got);
    }
}

static void single_column_reads_no_more_than_it_needs(void) {
    each_matrix(read_narrow_columns);
}

static void read_nothing(st_checkpoint *checkpoint, size_t index) {
    const st_range ranges[] = {{0, SIDE}, {7, 7}};
    calls = 0;
    OK(st_tensor_read(checkpoint, index, ranges, 2, NULL, 0, &err));
    CHECK(calls == 0);
}

static void empty_slice_reads_nothing(void) {
    each_matrix(read_nothing);
}

/* Smaller, and filled: every byte is looked at. */
enum { PLANES = 8, ROWS = 64, LINE = 4096, CUBE = PLANES * ROWS * LINE };
static const fixture_tensor cube_tensor = {"cube", "F32", "[8,64,1024]", CUBE, NULL};
static const fixture cube = {&cube_tensor, 1, NULL, 0};

static void slice_of_three_dimensions(void) {
    const st_range ranges[] = {{2, 6}, {16, 32}, {256, 512}};
    enum { WIDTH = 1024, NEEDED = 4 * 16 * WIDTH };
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open(&cube, storage, 0);
        unsigned char *got = read_counted(checkpoint, 0, ranges, 3, NEEDED);
        /* The gaps within a plane are small, those between planes are not. */
        CHECK(calls == 4 && bytes == 4 * (15 * LINE + WIDTH));
        for (size_t p = 0; p < 4; p++)
            for (size_t r = 0; r < 16; r++)
                CHECK(fixture_is(got + (p * 16 + r) * WIDTH, ((p + 2) * ROWS + r + 16) * LINE + WIDTH, WIDTH));
        free(got);
        st_close(checkpoint);
    }
}

static void columns_of_all_ranks_are_the_whole(void) {
    enum { WIDTH = LINE / RANKS };
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open(&cube, storage, 0);
        unsigned char *whole = malloc(CUBE);
        CHECK(whole);
        for (size_t rank = 0; rank < RANKS; rank++) {
            const st_range ranges[] = {{0, ST_END}, {0, ST_END}, {rank * 256, (rank + 1) * 256}};
            unsigned char *part = read_counted(checkpoint, 0, ranges, 3, CUBE / RANKS);
            CHECK(calls <= PLANES * ROWS / 20);
            for (size_t r = 0; r < PLANES * ROWS; r++)
                memcpy(whole + r * LINE + rank * WIDTH, part + r * WIDTH, WIDTH);
            free(part);
        }
        CHECK(fixture_is(whole, 0, CUBE));
        free(whole);
        st_close(checkpoint);
    }
}

static const test_case cases[] = {
    CASE(rows_of_one_of_four_ranks),
    CASE(columns_of_one_of_four_ranks),
    CASE(single_column_reads_no_more_than_it_needs),
    CASE(empty_slice_reads_nothing),
    CASE(slice_of_three_dimensions),
    CASE(columns_of_all_ranks_are_the_whole),
};

TEST_MAIN(cases)
