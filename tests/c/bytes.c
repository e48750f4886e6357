#define _GNU_SOURCE

#include "dlpack_abi.h"
#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const fixture_tensor odd_tensors[] = {
    {"f4", "F4", "[4,3]", 6, NULL},         {"f6", "F6_E2M3", "[2,4]", 6, NULL},  {"deep", "U8", NULL, 1, NULL},
    {"wide", "F32", "[2,3,4]", 96, NULL},   {"none", "F64", "[3,0,2]", 0, NULL},  {"far", "F32", "[0,9223372036854775808]", 0, NULL},
    {"farther", "U8", "[0,18446744073709551615]", 0, NULL},
};
enum { F4, F6, DEEP, WIDE, NONE, FAR, FARTHER, ODD_LEN };
enum { F4_AT = 0, F6_AT = 6, DEEP_AT = 12, WIDE_AT = 13 };

/* Tensors that are unusual: small elements, 65 dimensions, no elements, dimensions beyond 63 bits. */
static st_checkpoint *open_odd(int32_t storage) {
    char ones[200] = "[1";
    for (int i = 1; i < 65; i++)
        strcat(ones, ",1");
    strcat(ones, "]");
    fixture_tensor tensors[ODD_LEN];
    memcpy(tensors, odd_tensors, sizeof(tensors));
    tensors[DEEP].shape = ones;
    const fixture fixture = {tensors, ODD_LEN, NULL, 0};
    return fixture_open(&fixture, storage, 0);
}

static size_t alignment_of(st_dtype dtype) {
    return dtype == ST_DTYPE_C64 ? 4 : st_dtype_bits(dtype) < 8 ? 1 : st_dtype_bits(dtype) / 8;
}

static void tensor_ptr_of_the_sample(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        for (size_t i = 0; i < SAMPLE_LEN; i++) {
            st_tensor tensor;
            const void *data = NULL, *again = NULL;
            size_t nbytes = 999;
            OK(st_tensor_info(checkpoint, i, &tensor, &err));
            OK(st_tensor_ptr(checkpoint, i, &data, &nbytes, &err));
            CHECK(data && nbytes == tensor.nbytes && (uintptr_t)data % alignment_of(tensor.dtype) == 0);
            CHECK(fixture_is(data, tensor.file_offset - 8 - info.header_bytes, nbytes));
            OK(st_tensor_ptr(checkpoint, i, &again, NULL, &err));
            CHECK(again == data);
        }
        st_close(checkpoint);
    }
}

static void tensor_ptr_of_unaligned_files_is_aligned(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (size_t shift = 0; shift < 16; shift++) {
            fixture shifted = fixture_sample;
            shifted.shift = shift;
            st_checkpoint *checkpoint = fixture_open(&shifted, fixture_storages[s], 0);
            const void *data;
            OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
            CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
            /* A copy is aligned to 64 bytes, more than its dtype needs. */
            CHECK((uintptr_t)data % (shift % 4 ? 64 : 4) == 0);
            OK(st_tensor_ptr(checkpoint, SAMPLE_BYTE, &data, NULL, &err));
            CHECK(fixture_is(data, SAMPLE_BYTE_AT, 1));
            st_close(checkpoint);
        }
}

static void tensor_ptr_of_every_dtype_is_aligned(void) {
    for (st_dtype dtype = 1; st_dtype_name(dtype); dtype++)
        for (size_t shift = 0; shift < 8; shift++) {
            /* 8 elements fill whole bytes, whatever their size. */
            const fixture_tensor tensors[] = {{"t", st_dtype_name(dtype), "[8]", st_dtype_bits(dtype), NULL}};
            const fixture fixture = {tensors, 1, NULL, shift};
            st_checkpoint *checkpoint = fixture_open(&fixture, ST_STORAGE_MMAP, 0);
            const void *data;
            size_t nbytes;
            OK(st_tensor_ptr(checkpoint, 0, &data, &nbytes, &err));
            CHECK((uintptr_t)data % alignment_of(dtype) == 0 && nbytes == st_dtype_bits(dtype) && fixture_is(data, 0, nbytes));
            st_close(checkpoint);
        }
}

static void tensor_ptr_over_a_mapping_is_where_the_file_lies(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_MMAP, 0);
    const char *weight, *bias;
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    weight = data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_BIAS, &data, NULL, &err));
    bias = data;
    CHECK(bias - weight == SAMPLE_BIAS_AT - SAMPLE_WEIGHT_AT);
    st_close(checkpoint);
}

static void tensor_ptr_of_nothing_is_not_null(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = open_odd(fixture_storages[s]);
        const size_t without[] = {NONE, FAR, FARTHER};
        for (size_t i = 0; i < LEN(without); i++) {
            const void *data = NULL;
            size_t nbytes = 999;
            OK(st_tensor_ptr(checkpoint, without[i], &data, &nbytes, &err));
            CHECK(data && nbytes == 0 && (uintptr_t)data % 8 == 0);
        }
        st_close(checkpoint);
    }
}

static void tensor_ptr_and_read_of_more_dimensions_than_a_view_holds(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    const void *data;
    st_view view = {0};
    unsigned char byte = 0;
    st_range ranges[65];
    for (int i = 0; i < 65; i++)
        ranges[i] = (st_range){0, ST_END};
    OK(st_tensor_ptr(checkpoint, DEEP, &data, NULL, &err));
    CHECK(fixture_is(data, DEEP_AT, 1));
    OK(st_tensor_read(checkpoint, DEEP, ranges, 65, &byte, 1, &err));
    CHECK(fixture_is(&byte, DEEP_AT, 1));
    FAILS(ST_ERR_UNSUPPORTED, st_tensor_view(checkpoint, DEEP, NULL, 0, &view, &err));
    SAYS("65");
    SAYS("64");
    CHECK(view.data == NULL);
    st_close(checkpoint);
}

static void tensor_view_of_the_whole(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        const st_range ranges[] = {{0, ST_END}, {0, 5}};
        /* All of these take the whole tensor. */
        const struct {
            const st_range *ranges;
            size_t rank;
        } whole[] = {{NULL, 0}, {NULL, 99}, {ranges, 0}, {ranges, 1}, {ranges, 2}};
        const void *data;
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        for (size_t i = 0; i < LEN(whole); i++) {
            st_view view;
            memset(&view, 0xff, sizeof(view));
            OK(st_tensor_view(checkpoint, SAMPLE_WEIGHT, whole[i].ranges, whole[i].rank, &view, &err));
            CHECK(view.data == data && view.dtype == ST_DTYPE_F32 && view.rank == 2);
            CHECK(view.nbytes == SAMPLE_WEIGHT_SIZE && view.contiguous == 1);
            CHECK(view.shape[0] == 4 && view.shape[1] == 5 && view.strides[0] == 5 && view.strides[1] == 1);
            for (size_t d = 2; d < ST_MAX_RANK; d++)
                CHECK(view.shape[d] == 0 && view.strides[d] == 0);
        }
        st_close(checkpoint);
    }
}

/* A view of `wide`, element by element against where the bytes must be. */
static void check_wide(st_checkpoint *checkpoint, const st_range *ranges, size_t rank) {
    static const uint64_t shape[] = {2, 3, 4};
    st_view view;
    OK(st_tensor_view(checkpoint, WIDE, ranges, rank, &view, &err));
    uint64_t start[3], len[3];
    for (size_t d = 0; d < 3; d++) {
        start[d] = d < rank ? ranges[d].start : 0;
        len[d] = (d < rank && ranges[d].stop != ST_END ? ranges[d].stop : shape[d]) - start[d];
        CHECK(view.shape[d] == len[d]);
    }
    CHECK(view.nbytes == len[0] * len[1] * len[2] * 4 && view.data);
    CHECK(view.strides[0] == 12 && view.strides[1] == 4 && view.strides[2] == 1);
    size_t packed = 0;
    bool contiguous = true;
    for (uint64_t i = 0; i < len[0]; i++)
        for (uint64_t j = 0; j < len[1]; j++)
            for (uint64_t k = 0; k < len[2]; k++, packed++) {
                const int64_t at = (int64_t)i * view.strides[0] + (int64_t)j * view.strides[1] + (int64_t)k * view.strides[2];
                const size_t element = (start[0] + i) * 12 + (start[1] + j) * 4 + start[2] + k;
                CHECK(fixture_is((const char *)view.data + at * 4, WIDE_AT + element * 4, 4));
                contiguous = contiguous && at == (int64_t)packed;
            }
    CHECK((view.contiguous == 1) == contiguous && view.contiguous <= 1);
}

static void tensor_view_of_every_slice(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    st_range r[3];
    for (r[0].start = 0; r[0].start <= 2; r[0].start++)
        for (r[0].stop = r[0].start; r[0].stop <= 2; r[0].stop++) {
            check_wide(checkpoint, r, 1);
            for (r[1].start = 0; r[1].start <= 3; r[1].start++)
                for (r[1].stop = r[1].start; r[1].stop <= 3; r[1].stop++) {
                    check_wide(checkpoint, r, 2);
                    for (r[2].start = 0; r[2].start <= 4; r[2].start++)
                        for (r[2].stop = r[2].start; r[2].stop <= 4; r[2].stop++)
                            check_wide(checkpoint, r, 3);
                }
        }
    const st_range to_the_end[] = {{1, ST_END}, {2, ST_END}, {4, ST_END}};
    check_wide(checkpoint, to_the_end, 1);
    check_wide(checkpoint, to_the_end, 2);
    check_wide(checkpoint, to_the_end, 3);
    st_close(checkpoint);
}

/* The same request to each function that takes ranges. */
static void refuses_ranges(st_checkpoint *checkpoint, st_status status, size_t index, const st_range *ranges, size_t rank) {
    st_view view = {0};
    unsigned char dst[256];
    DLManagedTensorVersioned *managed = (DLManagedTensorVersioned *)dst;
    DLManagedTensor *old = (DLManagedTensor *)dst;
    FAILS(status, st_tensor_read(checkpoint, index, ranges, rank, dst, sizeof(dst), &err));
    FAILS(status, st_tensor_dlpack(checkpoint, index, ranges, rank, &managed, &err));
    CHECK(managed == NULL);
    /* That form has no F6, whatever the slice. */
    st_tensor tensor = {0};
    const bool is_f6 = st_tensor_info(checkpoint, index, &tensor, NULL) == ST_OK &&
                       (tensor.dtype == ST_DTYPE_F6_E2M3 || tensor.dtype == ST_DTYPE_F6_E3M2);
    FAILS(status == ST_ERR_MISALIGNED && is_f6 ? ST_ERR_UNSUPPORTED : status,
          st_tensor_dlpack_unversioned(checkpoint, index, ranges, rank, &old, &err));
    CHECK(old == NULL);
    FAILS(status, st_tensor_view(checkpoint, index, ranges, rank, &view, &err));
    CHECK(view.data == NULL);
}

static void ranges_outside_are_refused(void) {
    static const st_range outside[][2] = {
        {{0, 5}, {0, 5}}, {{5, ST_END}, {0, 5}}, {{0, 4}, {0, 6}}, {{3, 2}, {0, 5}}, {{0, 4}, {6, 6}}, {{0, ST_END - 1}, {0, 5}},
        {{ST_END, ST_END}, {0, 5}}, {{0, 4}, {ST_END - 1, 2}}, {{ST_END - 1, ST_END - 1}, {0, 0}}, {{1u << 31, 1u << 31}, {0, 1}},
    };
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        for (size_t i = 0; i < LEN(outside); i++) {
            refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_WEIGHT, outside[i], 2);
            SAYS("\"weight\"");
        }
        refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_WEIGHT, outside[0], 1);
        SAYS("[0, 5)");
        SAYS("dimension 0");
        st_close(checkpoint);
    }
}

static void more_ranges_than_dimensions_are_refused(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    /* One range in memory of its own size: the number must be refused before the ranges are read. */
    st_range *one = malloc(sizeof(*one));
    CHECK(one);
    *one = (st_range){0, 1};
    refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_SCALAR, one, 1);
    refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_WEIGHT, one, 3);
    refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_WEIGHT, one, 1000000);
    refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, SAMPLE_WEIGHT, one, SIZE_MAX);
    free(one);
    st_close(checkpoint);
}

static void slices_of_small_elements(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = open_odd(fixture_storages[s]);
        st_view view;
        unsigned char dst[6];
        OK(st_tensor_view(checkpoint, F4, NULL, 0, &view, &err));
        CHECK(view.nbytes == 6 && view.contiguous && view.strides[0] == 3 && fixture_is(view.data, F4_AT, 6));
        /* Two rows of three elements of 4 bits are three bytes; one row is not. */
        const st_range rows = {2, 4}, row = {1, 2}, none = {1, 1}, f6_row = {1, 2};
        OK(st_tensor_view(checkpoint, F4, &rows, 1, &view, &err));
        CHECK(view.nbytes == 3 && fixture_is(view.data, F4_AT + 3, 3));
        OK(st_tensor_read(checkpoint, F4, &rows, 1, dst, 3, &err));
        CHECK(fixture_is(dst, F4_AT + 3, 3));
        OK(st_tensor_view(checkpoint, F4, &none, 1, &view, &err));
        CHECK(view.nbytes == 0);
        refuses_ranges(checkpoint, ST_ERR_MISALIGNED, F4, &row, 1);
        SAYS("F4");
        const st_range column[] = {{0, ST_END}, {0, 2}}, f6_half[] = {{0, 2}, {0, 2}};
        refuses_ranges(checkpoint, ST_ERR_MISALIGNED, F4, column, 2);
        /* Four elements of 6 bits are three bytes. */
        OK(st_tensor_view(checkpoint, F6, &f6_row, 1, &view, &err));
        CHECK(view.nbytes == 3 && fixture_is(view.data, F6_AT + 3, 3));
        refuses_ranges(checkpoint, ST_ERR_MISALIGNED, F6, f6_half, 2);
        st_close(checkpoint);
    }
}

static void tensor_view_of_nothing(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    st_view view;
    OK(st_tensor_view(checkpoint, NONE, NULL, 0, &view, &err));
    CHECK(view.data && view.rank == 3 && view.nbytes == 0 && view.contiguous == 1);
    CHECK(view.shape[0] == 3 && view.shape[1] == 0 && view.shape[2] == 2);
    const st_range last[] = {{2, 3}, {0, 0}, {2, 2}};
    OK(st_tensor_view(checkpoint, NONE, last, 3, &view, &err));
    CHECK(view.shape[0] == 1 && view.shape[2] == 0);
    OK(st_tensor_view(checkpoint, FAR, NULL, 0, &view, &err));
    CHECK(view.shape[1] == 1ull << 63 && view.strides[1] == 1);
    OK(st_tensor_view(checkpoint, FARTHER, NULL, 0, &view, &err));
    CHECK(view.shape[1] == UINT64_MAX);
    /* A slice of nothing out of something. */
    const st_range nothing[] = {{2, 2}, {3, ST_END}};
    OK(st_tensor_view(checkpoint, WIDE, nothing, 2, &view, &err));
    CHECK(view.data && view.nbytes == 0 && view.contiguous == 1 && view.shape[0] == 0 && view.shape[1] == 0 && view.shape[2] == 4);
    st_close(checkpoint);
}

static void tensor_view_of_a_scalar(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    st_view view;
    const st_range unused = {7, 3};
    OK(st_tensor_view(checkpoint, SAMPLE_SCALAR, &unused, 0, &view, &err));
    CHECK(view.rank == 0 && view.nbytes == 8 && view.contiguous == 1 && (uintptr_t)view.data % 8 == 0);
    CHECK(fixture_is(view.data, SAMPLE_SCALAR_AT, 8));
    st_close(checkpoint);
}

static void index_outside(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    const size_t outside[] = {SAMPLE_LEN, SIZE_MAX};
    for (size_t i = 0; i < LEN(outside); i++) {
        const void *data = NULL;
        size_t nbytes = 999;
        const st_range range = {0, 1};
        FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_ptr(checkpoint, outside[i], &data, &nbytes, &err));
        CHECK(!data && nbytes == 999);
        refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, outside[i], NULL, 0);
        refuses_ranges(checkpoint, ST_ERR_OUT_OF_RANGE, outside[i], &range, 1);
    }
    st_close(checkpoint);
}

static void tensor_ptr_needs_its_pointers(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    const void *data = NULL;
    size_t nbytes = 999;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_ptr(NULL, 0, &data, &nbytes, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_ptr(checkpoint, 0, NULL, &nbytes, &err));
    CHECK(!data && nbytes == 999);
    st_close(checkpoint);
}

static void tensor_view_needs_its_pointers(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    st_view view = {0};
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_view(NULL, 0, NULL, 0, &view, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_view(checkpoint, 0, NULL, 0, NULL, &err));
    CHECK(!view.data);
    st_close(checkpoint);
}

static void tensor_read_needs_its_pointers(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    char dst[80];
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_read(NULL, 0, NULL, 0, dst, sizeof(dst), &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_read(checkpoint, 0, NULL, 0, NULL, 80, &err));
    /* Of nothing there is nothing to write. */
    OK(st_tensor_read(checkpoint, SAMPLE_EMPTY, NULL, 0, NULL, 0, &err));
    st_close(checkpoint);
}

/* The bytes around the destination stay as they are, at every alignment of it. */
static void tensor_read_fills_the_slice_and_no_more(void) {
    enum { UNTOUCHED = 0xa7, ROOM = 64 + 96 + 64 };
    const st_range some[] = {{0, 1}, {1, 3}, {0, ST_END}}, columns[] = {{0, 2}, {0, 3}, {1, 2}};
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = open_odd(fixture_storages[s]);
        for (size_t shift = 0; shift < 16; shift++) {
            unsigned char room[ROOM], *dst = room + 32 + shift;
            const struct {
                const st_range *ranges;
                size_t rank, nbytes;
            } slices[] = {{NULL, 0, 96}, {some, 2, 32}, {some, 3, 32}, {columns, 3, 24}};
            for (size_t i = 0; i < LEN(slices); i++) {
                memset(room, UNTOUCHED, sizeof(room));
                OK(st_tensor_read(checkpoint, WIDE, slices[i].ranges, slices[i].rank, dst, slices[i].nbytes, &err));
                for (size_t k = 0; k < sizeof(room); k++)
                    CHECK(room[k] == UNTOUCHED || (room + k >= dst && room + k < dst + slices[i].nbytes));
                if (slices[i].ranges != columns)
                    CHECK(fixture_is(dst, WIDE_AT + (slices[i].ranges ? 16 : 0), slices[i].nbytes));
                else
                    for (size_t row = 0; row < 6; row++)
                        CHECK(fixture_is(dst + 4 * row, WIDE_AT + 16 * row + 4, 4));
            }
        }
        st_close(checkpoint);
    }
}

static void tensor_read_into_too_little_room(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    unsigned char dst[96] = {0};
    const st_range some[] = {{0, 1}, {1, 3}};
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, WIDE, NULL, 0, dst, 95, &err));
    SAYS("96");
    SAYS("95");
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, WIDE, some, 2, dst, 31, &err));
    FAILS(ST_ERR_BUFFER_TOO_SMALL, st_tensor_read(checkpoint, WIDE, NULL, 0, dst, 0, &err));
    for (size_t i = 0; i < sizeof(dst); i++)
        CHECK(dst[i] == 0);
    st_close(checkpoint);
}

static void tensor_read_of_a_truncated_file(void) {
    for (int32_t storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("truncated.safetensors", &fixture_sample);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        unsigned char dst[SAMPLE_WEIGHT_SIZE];
        st_tensor tensor;
        OK(st_tensor_info(checkpoint, SAMPLE_BIAS, &tensor, &err));
        CHECK(truncate(path, (off_t)tensor.file_offset + 1) == 0);
        FAILS(ST_ERR_TRUNCATED, st_tensor_read(checkpoint, SAMPLE_BIAS, NULL, 0, dst, sizeof(dst), &err));
        FAILS(ST_ERR_TRUNCATED, st_tensor_read(checkpoint, SAMPLE_SCALAR, NULL, 0, dst, sizeof(dst), &err));
        SAYS("truncated.safetensors");
        OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, dst, sizeof(dst), &err));
        CHECK(fixture_is(dst, SAMPLE_WEIGHT_AT, sizeof(dst)));
        st_close(checkpoint);
    }
}

/* What the memory was changed to is not what the file has. */
static void tensor_read_gives_the_file_after_copy_on_write(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], ST_OPEN_COPY_ON_WRITE);
        const void *data;
        unsigned char dst[SAMPLE_WEIGHT_SIZE];
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        memset((void *)(uintptr_t)data, 0xee, SAMPLE_WEIGHT_SIZE);
        OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, dst, sizeof(dst), &err));
        CHECK(fixture_is(dst, SAMPLE_WEIGHT_AT, sizeof(dst)));
        st_close(checkpoint);
    }
}

/* --- DLPack: dlpack.c has what each field must be for each dtype -------------------------------------------------------------- */

/* A slice of `wide`, element by element against where the bytes must be. */
static void check_dlpack_of_wide(const DLTensor *tensor, uint64_t first_row) {
    CHECK(tensor->ndim == 3 && tensor->byte_offset == 0 && tensor->device.device_type == kDLCPU);
    CHECK(tensor->dtype.code == 2 && tensor->dtype.bits == 32 && tensor->dtype.lanes == 1);
    CHECK(tensor->shape[0] == 2 - (int64_t)first_row && tensor->shape[1] == 3 && tensor->shape[2] == 2);
    for (int64_t i = 0; i < tensor->shape[0]; i++)
        for (int64_t j = 0; j < 3; j++)
            for (int64_t k = 0; k < 2; k++) {
                const int64_t at = i * tensor->strides[0] + j * tensor->strides[1] + k * tensor->strides[2];
                const size_t element = ((size_t)i + first_row) * 12 + (size_t)j * 4 + (size_t)k + 1;
                CHECK(fixture_is((const char *)tensor->data + at * 4, WIDE_AT + 4 * element, 4));
            }
}

static void tensor_dlpack_of_slices(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (uint64_t row = 0; row < 2; row++) {
            st_checkpoint *checkpoint = open_odd(fixture_storages[s]);
            const st_range ranges[] = {{row, ST_END}, {0, 3}, {1, 3}};
            DLManagedTensorVersioned *managed;
            OK(st_tensor_dlpack(checkpoint, WIDE, ranges, 3, &managed, &err));
            CHECK(managed->version.major == 1 && managed->flags == DLPACK_FLAG_BITMASK_READ_ONLY);
            /* It holds a reference of its own. */
            st_close(checkpoint);
            check_dlpack_of_wide(&managed->dl_tensor, row);
            managed->deleter(managed);
        }
}

static void tensor_dlpack_needs_its_pointers(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    DLManagedTensorVersioned *managed = (DLManagedTensorVersioned *)&managed;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack(NULL, WIDE, NULL, 0, &managed, &err));
    CHECK(!managed);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack(checkpoint, WIDE, NULL, 0, NULL, &err));
    st_close(checkpoint);
}

static void tensor_dlpack_of_a_dimension_beyond_63_bits(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    DLManagedTensorVersioned *managed = (DLManagedTensorVersioned *)&managed;
    FAILS(ST_ERR_UNSUPPORTED, st_tensor_dlpack(checkpoint, FAR, NULL, 0, &managed, &err));
    CHECK(!managed);
    st_close(checkpoint);
}

static void tensor_dlpack_unversioned_of_slices(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++)
        for (uint64_t row = 0; row < 2; row++) {
            st_checkpoint *checkpoint = open_odd(fixture_storages[s]);
            const st_range ranges[] = {{row, ST_END}, {0, 3}, {1, 3}};
            DLManagedTensor *managed;
            OK(st_tensor_dlpack_unversioned(checkpoint, WIDE, ranges, 3, &managed, &err));
            st_close(checkpoint);
            check_dlpack_of_wide(&managed->dl_tensor, row);
            managed->deleter(managed);
        }
}

static void tensor_dlpack_unversioned_needs_its_pointers(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    DLManagedTensor *managed = (DLManagedTensor *)&managed;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack_unversioned(NULL, WIDE, NULL, 0, &managed, &err));
    CHECK(!managed);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack_unversioned(checkpoint, WIDE, NULL, 0, NULL, &err));
    st_close(checkpoint);
}

/* What that form cannot say: 2^63 elements, and elements that are no whole bytes. */
static void tensor_dlpack_unversioned_of_what_it_cannot_say(void) {
    st_checkpoint *checkpoint = open_odd(ST_STORAGE_AUTO);
    const size_t cannot[] = {FAR, F4, F6};
    for (size_t i = 0; i < LEN(cannot); i++) {
        DLManagedTensor *managed = (DLManagedTensor *)&managed;
        FAILS(ST_ERR_UNSUPPORTED, st_tensor_dlpack_unversioned(checkpoint, cannot[i], NULL, 0, &managed, &err));
        CHECK(!managed);
    }
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(tensor_ptr_of_the_sample),
    CASE(tensor_ptr_of_unaligned_files_is_aligned),
    CASE(tensor_ptr_of_every_dtype_is_aligned),
    CASE(tensor_ptr_over_a_mapping_is_where_the_file_lies),
    CASE(tensor_ptr_of_nothing_is_not_null),
    CASE(tensor_ptr_and_read_of_more_dimensions_than_a_view_holds),
    CASE(tensor_view_of_the_whole),
    CASE(tensor_view_of_every_slice),
    CASE(ranges_outside_are_refused),
    CASE(more_ranges_than_dimensions_are_refused),
    CASE(slices_of_small_elements),
    CASE(tensor_view_of_nothing),
    CASE(tensor_view_of_a_scalar),
    CASE(index_outside),
    CASE(tensor_ptr_needs_its_pointers),
    CASE(tensor_view_needs_its_pointers),
    CASE(tensor_read_needs_its_pointers),
    CASE(tensor_read_fills_the_slice_and_no_more),
    CASE(tensor_read_into_too_little_room),
    CASE(tensor_read_of_a_truncated_file),
    CASE(tensor_read_gives_the_file_after_copy_on_write),
    CASE(tensor_dlpack_of_slices),
    CASE(tensor_dlpack_needs_its_pointers),
    CASE(tensor_dlpack_of_a_dimension_beyond_63_bits),
    CASE(tensor_dlpack_unversioned_of_slices),
    CASE(tensor_dlpack_unversioned_needs_its_pointers),
    CASE(tensor_dlpack_unversioned_of_what_it_cannot_say),
};

TEST_MAIN(cases)
