#define _GNU_SOURCE

#include "constants.h"
#include "dlpack_abi.h"
#include "fixture.h"
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    st_dtype dtype;
    const char *name;
    uint8_t bits, code;
} dtypes[] = {
#define DTYPE(dtype, number, name, bits, code) {dtype, name, bits, code},
    DTYPES(DTYPE)
};

static st_checkpoint *open_one(const char *dtype, const char *shape, size_t nbytes, int32_t storage) {
    const fixture_tensor tensors[] = {{"t", dtype, shape, nbytes, NULL}};
    const fixture fixture = {tensors, 1, NULL, 0};
    return fixture_open(&fixture, storage, 0);
}

/* A [2,4] tensor: two F4 elements are one of DLPack's, as in torch. */
static void check_fields(const DLTensor *tensor, size_t dtype) {
    const int lanes = dtypes[dtype].dtype == ST_DTYPE_F4 ? 2 : 1;
    CHECK(tensor->device.device_type == kDLCPU && tensor->device.device_id == 0);
    CHECK(tensor->dtype.code == dtypes[dtype].code && tensor->dtype.bits == dtypes[dtype].bits);
    CHECK(tensor->dtype.lanes == lanes && tensor->ndim == 2 && tensor->byte_offset == 0);
    CHECK(tensor->shape[0] == 2 && tensor->shape[1] == 4 / lanes);
    CHECK(tensor->strides[0] == 4 / lanes && tensor->strides[1] == 1);
}

static void fields_of_every_dtype(void) {
    for (size_t i = 0; i < LEN(dtypes); i++) {
        st_checkpoint *checkpoint = open_one(dtypes[i].name, "[2,4]", dtypes[i].bits, ST_STORAGE_AUTO);
        const void *data;
        struct DLManagedTensorVersioned *managed;
        OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
        OK(st_tensor_dlpack(checkpoint, 0, NULL, 0, &managed, &err));
        CHECK(managed->version.major == 1 && managed->version.minor == 1);
        CHECK(managed->flags == DLPACK_FLAG_BITMASK_READ_ONLY);
        check_fields(&managed->dl_tensor, i);
        CHECK(managed->dl_tensor.data == data);
        managed->deleter(managed);
        st_close(checkpoint);
    }
}

static void unversioned_of_every_dtype(void) {
    for (size_t i = 0; i < LEN(dtypes); i++) {
        st_checkpoint *checkpoint = open_one(dtypes[i].name, "[2,4]", dtypes[i].bits, ST_STORAGE_AUTO);
        struct DLManagedTensor *managed = (struct DLManagedTensor *)&managed;
        if (dtypes[i].bits != 6) {
            const void *data;
            OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
            OK(st_tensor_dlpack_unversioned(checkpoint, 0, NULL, 0, &managed, &err));
            check_fields(&managed->dl_tensor, i);
            CHECK(managed->dl_tensor.data == data);
            managed->deleter(managed);
        } else {
            FAILS(ST_ERR_UNSUPPORTED, st_tensor_dlpack_unversioned(checkpoint, 0, NULL, 0, &managed, &err));
            SAYS(dtypes[i].name);
            CHECK(managed == NULL);
        }
        st_close(checkpoint);
    }
}

/* Slices of F4, in both forms: the shape and strides of pairs, or the status that refuses them. */
static void pairs_of_f4(void) {
    static const struct {
        const char *shape;
        size_t nbytes;
        st_range ranges[3];
        size_t ndim;
        st_status status;
        int64_t dims[3], strides[3], offset;
    } slices[] = {
        {"[2,4]", 4, {{1, 2}, {0, 4}}, 2, ST_OK, {1, 2}, {2, 1}, 2},
        {"[2,4]", 4, {{0, 2}, {2, 4}}, 2, ST_OK, {2, 1}, {2, 1}, 1},
        {"[2,4]", 4, {{0, 2}, {1, 3}}, 2, ST_ERR_MISALIGNED, {0}, {0}, 0},
        {"[2,4]", 4, {{0, 2}, {0, 3}}, 2, ST_ERR_MISALIGNED, {0}, {0}, 0},
        {"[2,4]", 4, {{1, 1}, {0, 4}}, 2, ST_OK, {0, 2}, {2, 1}, 0},
        {"[6]", 3, {{2, 6}}, 1, ST_OK, {2}, {1}, 1},
        {"[2,3,4]", 12, {{0, 2}, {1, 3}, {2, 4}}, 3, ST_OK, {2, 2, 1}, {6, 2, 1}, 3},
        /* Whole bytes, but rows that begin in the middle of one. */
        {"[4,3]", 6, {{0, 4}, {0, 3}}, 2, ST_ERR_UNSUPPORTED, {0}, {0}, 0},
        {"[4,3]", 6, {{2, 4}, {0, 3}}, 2, ST_ERR_UNSUPPORTED, {0}, {0}, 0},
        {"[4,3]", 6, {{0, 4}, {0, 2}}, 2, ST_ERR_MISALIGNED, {0}, {0}, 0},
        {"[4,3]", 6, {{2, 3}, {0, 2}}, 2, ST_OK, {1, 1}, {1, 1}, 3},
        {"[4,1]", 2, {{0, 4}, {0, 1}}, 2, ST_ERR_UNSUPPORTED, {0}, {0}, 0},
        {"[0,4]", 0, {{0, 0}, {0, 4}}, 2, ST_OK, {0, 2}, {2, 1}, 0},
        {"[0,3]", 0, {{0, 0}, {0, 3}}, 2, ST_ERR_UNSUPPORTED, {0}, {0}, 0},
        {"[2,0]", 0, {{0, 2}, {0, 0}}, 2, ST_OK, {2, 0}, {0, 1}, 0},
    };
    for (size_t i = 0; i < LEN(slices); i++) {
        const size_t ndim = slices[i].ndim;
        st_checkpoint *checkpoint = open_one("F4", slices[i].shape, slices[i].nbytes, ST_STORAGE_AUTO);
        const void *data;
        struct DLManagedTensorVersioned *managed = (struct DLManagedTensorVersioned *)&managed;
        struct DLManagedTensor *old = (struct DLManagedTensor *)&old;
        OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
        if (slices[i].status != ST_OK) {
            FAILS(slices[i].status, st_tensor_dlpack(checkpoint, 0, slices[i].ranges, ndim, &managed, &err));
            SAYS("F4");
            FAILS(slices[i].status, st_tensor_dlpack_unversioned(checkpoint, 0, slices[i].ranges, ndim, &old, &err));
            SAYS("F4");
            CHECK(managed == NULL && old == NULL);
        } else {
            OK(st_tensor_dlpack(checkpoint, 0, slices[i].ranges, ndim, &managed, &err));
            OK(st_tensor_dlpack_unversioned(checkpoint, 0, slices[i].ranges, ndim, &old, &err));
            const DLTensor *const tensors[] = {&managed->dl_tensor, &old->dl_tensor};
            for (size_t form = 0; form < LEN(tensors); form++) {
                const DLTensor *tensor = tensors[form];
                int is_empty = 0;
                CHECK(tensor->ndim == (int32_t)ndim && tensor->dtype.lanes == 2 && tensor->dtype.bits == 4);
                for (size_t dim = 0; dim < ndim; dim++) {
                    CHECK(tensor->shape[dim] == slices[i].dims[dim]);
                    CHECK(tensor->strides[dim] == slices[i].strides[dim]);
                    is_empty |= tensor->shape[dim] == 0;
                }
                CHECK(is_empty ? tensor->data == NULL : tensor->data == (const char *)data + slices[i].offset);
            }
            managed->deleter(managed);
            old->deleter(old);
        }
        st_close(checkpoint);
    }
}

static void flags_tell_copy_on_write(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], ST_OPEN_COPY_ON_WRITE);
        struct DLManagedTensorVersioned *managed;
        OK(st_tensor_dlpack(checkpoint, SAMPLE_WEIGHT, NULL, 0, &managed, &err));
        CHECK(managed->flags == 0);
        memset(managed->dl_tensor.data, 0xee, SAMPLE_WEIGHT_SIZE);
        const void *data;
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK(*(const unsigned char *)data == 0xee);
        managed->deleter(managed);
        st_close(checkpoint);
    }
}

static void scalar(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    struct DLManagedTensorVersioned *managed;
    OK(st_tensor_dlpack(checkpoint, SAMPLE_SCALAR, NULL, 0, &managed, &err));
    CHECK(managed->dl_tensor.ndim == 0 && fixture_is(managed->dl_tensor.data, SAMPLE_SCALAR_AT, 8));
    CHECK((uintptr_t)managed->dl_tensor.data % 8 == 0);
    managed->deleter(managed);
    st_close(checkpoint);
}

static void tensor_without_elements_has_null_data(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    struct DLManagedTensorVersioned *managed;
    struct DLManagedTensor *old;
    OK(st_tensor_dlpack(checkpoint, SAMPLE_EMPTY, NULL, 0, &managed, &err));
    CHECK(managed->dl_tensor.data == NULL && managed->dl_tensor.ndim == 2);
    CHECK(managed->dl_tensor.shape[0] == 0 && managed->dl_tensor.shape[1] == 3 && managed->dl_tensor.strides[1] == 1);
    managed->deleter(managed);
    const st_range nothing = {4, 4};
    OK(st_tensor_dlpack_unversioned(checkpoint, SAMPLE_WEIGHT, &nothing, 1, &old, &err));
    CHECK(old->dl_tensor.data == NULL && old->dl_tensor.shape[0] == 0 && old->dl_tensor.shape[1] == 5);
    old->deleter(old);
    st_close(checkpoint);
}

static void slice_is_strided_in_place(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        const st_range ranges[] = {{1, 3}, {2, ST_END}};
        const void *data;
        struct DLManagedTensorVersioned *managed;
        OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
        OK(st_tensor_dlpack(checkpoint, SAMPLE_WEIGHT, ranges, 2, &managed, &err));
        const DLTensor *tensor = &managed->dl_tensor;
        CHECK(tensor->shape[0] == 2 && tensor->shape[1] == 3 && tensor->strides[0] == 5 && tensor->strides[1] == 1);
        CHECK((const char *)tensor->data == (const char *)data + (1 * 5 + 2) * 4 && tensor->byte_offset == 0);
        managed->deleter(managed);
        st_close(checkpoint);
    }
}

static void more_dimensions_than_a_view_holds(void) {
    char ones[200] = "[1";
    for (int i = 1; i < 65; i++)
        strcat(ones, ",1");
    strcat(ones, "]");
    st_checkpoint *checkpoint = open_one("U8", ones, 1, ST_STORAGE_AUTO);
    struct DLManagedTensorVersioned *managed;
    OK(st_tensor_dlpack(checkpoint, 0, NULL, 0, &managed, &err));
    CHECK(managed->dl_tensor.ndim == 65);
    for (int i = 0; i < 65; i++)
        CHECK(managed->dl_tensor.shape[i] == 1 && managed->dl_tensor.strides[i] == 1);
    managed->deleter(managed);
    st_close(checkpoint);
}

static void dimension_beyond_63_bits(void) {
    st_checkpoint *checkpoint = open_one("F32", "[0,9223372036854775808]", 0, ST_STORAGE_AUTO);
    struct DLManagedTensorVersioned *managed = (struct DLManagedTensorVersioned *)&managed;
    struct DLManagedTensor *old = (struct DLManagedTensor *)&old;
    FAILS(ST_ERR_UNSUPPORTED, st_tensor_dlpack(checkpoint, 0, NULL, 0, &managed, &err));
    FAILS(ST_ERR_UNSUPPORTED, st_tensor_dlpack_unversioned(checkpoint, 0, NULL, 0, &old, &err));
    CHECK(managed == NULL && old == NULL);
    /* A slice of it can be small enough. */
    const st_range ranges[] = {{0, 0}, {0, 7}};
    OK(st_tensor_dlpack(checkpoint, 0, ranges, 2, &managed, &err));
    CHECK(managed->dl_tensor.shape[1] == 7);
    managed->deleter(managed);
    st_close(checkpoint);
}

static void refused_ranges_and_nulls(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    struct DLManagedTensorVersioned *managed = (struct DLManagedTensorVersioned *)&managed;
    struct DLManagedTensor *old = (struct DLManagedTensor *)&old;
    const st_range outside = {0, 99};
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_dlpack(checkpoint, SAMPLE_WEIGHT, &outside, 1, &managed, &err));
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_dlpack_unversioned(checkpoint, SAMPLE_WEIGHT, &outside, 1, &old, &err));
    CHECK(managed == NULL && old == NULL);
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_dlpack(checkpoint, SIZE_MAX, NULL, 0, &managed, &err));
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_dlpack_unversioned(checkpoint, SIZE_MAX, NULL, 0, &old, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack(NULL, 0, NULL, 0, &managed, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack_unversioned(NULL, 0, NULL, 0, &old, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack(checkpoint, 0, NULL, 0, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_tensor_dlpack_unversioned(checkpoint, 0, NULL, 0, NULL, &err));
    st_close(checkpoint);
}

static void *delete_here(void *managed) {
    struct DLManagedTensorVersioned *tensor = managed;
    tensor->deleter(tensor);
    return NULL;
}

static void outlives_the_handle(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        struct DLManagedTensorVersioned *mapped, *copied;
        struct DLManagedTensor *old;
        OK(st_tensor_dlpack(checkpoint, SAMPLE_WEIGHT, NULL, 0, &mapped, &err));
        OK(st_tensor_dlpack(checkpoint, SAMPLE_ODD, NULL, 0, &copied, &err));
        OK(st_tensor_dlpack_unversioned(checkpoint, SAMPLE_ODD, NULL, 0, &old, &err));
        CHECK(copied->dl_tensor.data == old->dl_tensor.data);
        st_close(checkpoint);
        CHECK(fixture_is(mapped->dl_tensor.data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        mapped->deleter(mapped);
        CHECK(fixture_is(copied->dl_tensor.data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
        old->deleter(old);
        CHECK(fixture_is(copied->dl_tensor.data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, delete_here, copied) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

static const test_case cases[] = {
    CASE(fields_of_every_dtype),
    CASE(unversioned_of_every_dtype),
    CASE(pairs_of_f4),
    CASE(flags_tell_copy_on_write),
    CASE(scalar),
    CASE(tensor_without_elements_has_null_data),
    CASE(slice_is_strided_in_place),
    CASE(more_dimensions_than_a_view_holds),
    CASE(dimension_beyond_63_bits),
    CASE(refused_ranges_and_nulls),
    CASE(outlives_the_handle),
};

TEST_MAIN(cases)
