#define _GNU_SOURCE

#include "constants.h"
#include "test.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const struct {
    st_dtype dtype;
    const char *name;
    uint32_t bits;
} dtypes[] = {
#define DTYPE(dtype, number, name, bits, code) {dtype, name, bits},
    DTYPES(DTYPE)
};

static void version_is_that_of_the_header(void) {
    char numbers[32];
    snprintf(numbers, sizeof(numbers), "%d.%d.%d", ST_VERSION_MAJOR, ST_VERSION_MINOR, ST_VERSION_PATCH);
    CHECK(strcmp(st_version(), ST_VERSION) == 0);
    CHECK(strcmp(st_version(), numbers) == 0);
}

static void abi_version_is_in_the_soname(void) {
    Dl_info loaded;
    void *function = NULL;
    const char *(*version)(void) = st_version;
    memcpy(&function, &version, sizeof(function));
    CHECK(dladdr(function, &loaded));
    const char *base = strrchr(loaded.dli_fname, '/') ? strrchr(loaded.dli_fname, '/') + 1 : loaded.dli_fname;
    if (!strstr(base, ".so"))
        SKIP("linked to the static library");
    char soname[64];
    snprintf(soname, sizeof(soname), "libsafetensors_lazy.so.%u", (unsigned)st_abi_version());
    CHECK(strcmp(base, soname) == 0);
}

static bool is_dtype(st_dtype dtype) {
    return dtype >= 1 && dtype <= (st_dtype)LEN(dtypes);
}

static void dtype_name_of_every_dtype(void) {
    for (size_t i = 0; i < LEN(dtypes); i++)
        CHECK(strcmp(st_dtype_name(dtypes[i].dtype), dtypes[i].name) == 0);
}

static void dtype_name_of_no_other_number(void) {
    for (st_dtype dtype = -1000; dtype < 1000; dtype++)
        CHECK((st_dtype_name(dtype) != NULL) == is_dtype(dtype));
    CHECK(!st_dtype_name(INT32_MIN) && !st_dtype_name(INT32_MAX));
}

static void dtype_bits_of_every_dtype(void) {
    for (size_t i = 0; i < LEN(dtypes); i++)
        CHECK(st_dtype_bits(dtypes[i].dtype) == dtypes[i].bits);
}

static void dtype_bits_of_no_other_number(void) {
    for (st_dtype dtype = -1000; dtype < 1000; dtype++)
        CHECK((st_dtype_bits(dtype) != 0) == is_dtype(dtype));
    CHECK(st_dtype_bits(INT32_MIN) == 0 && st_dtype_bits(INT32_MAX) == 0);
}

static void dtype_from_name_is_the_inverse(void) {
    for (size_t i = 0; i < LEN(dtypes); i++) {
        st_dtype dtype = -1;
        CHECK(st_dtype_from_name(dtypes[i].name, &dtype) == ST_OK);
        CHECK(dtype == dtypes[i].dtype);
    }
}

static void dtype_from_name_of_other_names(void) {
    static const char *const names[] = {"", "f32", "F32 ", " F32", "BF16\n", "F8", "FP16", "float32", "F8_E4M3FN", "\xff", "F64\xff"};
    for (size_t i = 0; i < LEN(names); i++) {
        st_dtype dtype = -1;
        CHECK(st_dtype_from_name(names[i], &dtype) == ST_ERR_NOT_FOUND);
        CHECK(dtype == -1);
    }
}

static void dtype_from_name_of_null(void) {
    st_dtype dtype = -1;
    CHECK(st_dtype_from_name(NULL, &dtype) == ST_ERR_INVALID_ARGUMENT);
    CHECK(dtype == -1);
    CHECK(st_dtype_from_name("F32", NULL) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_dtype_from_name(NULL, NULL) == ST_ERR_INVALID_ARGUMENT);
}

static const test_case cases[] = {
    CASE(version_is_that_of_the_header),
    CASE(abi_version_is_in_the_soname),
    CASE(dtype_name_of_every_dtype),
    CASE(dtype_name_of_no_other_number),
    CASE(dtype_bits_of_every_dtype),
    CASE(dtype_bits_of_no_other_number),
    CASE(dtype_from_name_is_the_inverse),
    CASE(dtype_from_name_of_other_names),
    CASE(dtype_from_name_of_null),
};

TEST_MAIN(cases)
