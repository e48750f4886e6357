#include "constants.h"
#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    st_status status;
    const char *name;
} statuses[] = {
#define STATUS(status, number) {status, #status},
    STATUSES(STATUS)
};

static bool is_status(st_status status) {
    for (size_t i = 0; i < LEN(statuses); i++)
        if (statuses[i].status == status)
            return true;
    return false;
}

static void status_name_of_every_status(void) {
    for (size_t i = 0; i < LEN(statuses); i++) {
        CHECK(st_status_name(statuses[i].status));
        CHECK(strcmp(st_status_name(statuses[i].status), statuses[i].name) == 0);
        CHECK(st_status_name(statuses[i].status) == st_status_name(statuses[i].status));
    }
}

static void status_name_of_no_other_number(void) {
    for (st_status status = -1000; status < 2000; status++)
        CHECK((st_status_name(status) != NULL) == is_status(status));
    CHECK(!st_status_name(INT32_MIN) && !st_status_name(INT32_MAX));
}

static void err_may_be_null(void) {
    st_checkpoint *checkpoint;
    CHECK(st_open("/nonexistent/file", NULL, &checkpoint, NULL) == ST_ERR_IO);
    CHECK(st_open_buffer("12345678", 8, NULL, &checkpoint, NULL) == ST_ERR_HEADER_TOO_LARGE);
    checkpoint = fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0);
    st_tensor tensor;
    st_view view;
    const void *data;
    char byte;
    DLManagedTensorVersioned *managed;
    DLManagedTensor *old;
    CHECK(st_tensor_info(checkpoint, 99, &tensor, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_tensor_ptr(checkpoint, 99, &data, NULL, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_tensor_view(checkpoint, 99, NULL, 0, &view, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_tensor_read(checkpoint, 99, NULL, 0, &byte, 1, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_tensor_dlpack(checkpoint, 99, NULL, 0, &managed, NULL) == ST_ERR_OUT_OF_RANGE);
    CHECK(st_tensor_dlpack_unversioned(checkpoint, 99, NULL, 0, &old, NULL) == ST_ERR_OUT_OF_RANGE);
    st_close(checkpoint);
}

static void err_is_written_over_completely(void) {
    st_checkpoint *checkpoint;
    char name[300];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = 0;
    FAILS(ST_ERR_IO, st_open(name, NULL, &checkpoint, &err));
    CHECK(err.os_error != 0);
    /* Without test_before: what the failure before has left is still there. */
    CHECK(st_open_buffer("", 0, NULL, &checkpoint, &err) == ST_ERR_HEADER_TOO_SMALL);
    CHECK(err.status == ST_ERR_HEADER_TOO_SMALL && err.os_error == 0);
    CHECK(strchr(err.message, '\0') < err.message + sizeof(err.message) && !strstr(err.message, "nnn"));
}

static void message_names_file_tensor_and_numbers(void) {
    const fixture_tensor wrong[] = {{"some.tensor", "F32", "[2,3]", 20, NULL}};
    const fixture fixture = {wrong, 1, NULL, 0};
    const char *path = fixture_write("wrong.safetensors", &fixture);
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_TENSOR_SIZE, st_open(path, NULL, &checkpoint, &err));
    SAYS("wrong.safetensors\"");
    SAYS("\"some.tensor\"");
    SAYS("F32 [2, 3]");
    SAYS("24");
    SAYS("20");
}

static void message_is_cut_to_fit(void) {
    /* A long path of characters of several bytes, at each offset, so that the cut falls on each place in a character. */
    for (size_t pad = 0; pad < 4; pad++) {
        char path[4096] = "/nonexistent/";
        for (size_t i = 0; i < pad; i++)
            strcat(path, "x");
        while (strlen(path) < 3900)
            strcat(path, "/\xe6\x9d\x83\xe9\x87\x8d\xf0\x9f\x98\x80");
        st_checkpoint *checkpoint;
        FAILS(ST_ERR_IO, st_open(path, NULL, &checkpoint, &err));
        CHECK(strlen(err.message) <= 503);
    }
}

static void message_stays_one_line_whatever_names_hold(void) {
    static const char *const names[] = {
        "line\\nbreak", "tab\\tand\\rreturn", "\\u001b[31mred", "\\u0085next line", "\\u2028separator", "\\u007f",
        "quote\\\"and\\\\backslash", "\\u202eright to left", "\\ud83d\\ude00", "",
    };
    for (size_t i = 0; i < LEN(names); i++) {
        const fixture_tensor tensors[] = {{names[i], "U8", "[1]", 1, NULL}, {names[i], "U8", "[1]", 1, NULL}};
        const fixture fixture = {tensors, 2, NULL, 0};
        size_t len;
        unsigned char *bytes = fixture_bytes(&fixture, &len);
        st_checkpoint *checkpoint;
        FAILS(ST_ERR_DUPLICATE_NAME, st_open_buffer(bytes, len, NULL, &checkpoint, &err));
        free(bytes);
    }
}

/* The same for text that is no name: what a parser quotes in its own complaints. */
static void message_stays_one_line_whatever_the_header_holds(void) {
    static const struct {
        st_status status;
        const char *header;
    } headers[] = {
        {ST_ERR_HEADER_DTYPE, "{\"t\":{\"dtype\":\"F\\n32\\u001b\",\"shape\":[],\"data_offsets\":[0,4]}}"},
        {ST_ERR_HEADER_STRUCTURE, "{\"t\":\"two\\nlines\"}"},
        {ST_ERR_HEADER_STRUCTURE, "{\"t\\n\":{\"dtype\":\"F32\",\"shape\":\"two\\nlines\",\"data_offsets\":[0,4]}}"},
        {ST_ERR_HEADER_STRUCTURE, "{\"t\":{\"dtype\":\"F32\",\"dtype\":\"\\n\",\"shape\":[],\"data_offsets\":[0,4]}}"},
        {ST_ERR_HEADER_STRUCTURE, "[\"two\\nlines\"]"},
        {ST_ERR_HEADER_METADATA, "{\"__metadata__\":{\"a\\nb\":1}}"},
        {ST_ERR_HEADER_METADATA, "{\"__metadata__\":\"two\\nlines\"}"},
        {ST_ERR_HEADER_JSON, "{\"t\nwo\": \x1b"},
        {ST_ERR_NUL_IN_NAME, "{\"t\\u0000\\n\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"},
        {ST_ERR_DUPLICATE_METADATA, "{\"__metadata__\":{\"\\n\":\"\",\"\\u000a\":\"\"}}"},
    };
    for (size_t i = 0; i < LEN(headers); i++) {
        unsigned char bytes[256] = {(unsigned char)strlen(headers[i].header)};
        memcpy(bytes + 8, headers[i].header, strlen(headers[i].header));
        st_checkpoint *checkpoint;
        FAILS(headers[i].status, st_open_buffer(bytes, 8 + strlen(headers[i].header), NULL, &checkpoint, &err));
    }
}

static void message_of_a_path_that_is_not_utf8(void) {
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_IO, st_open("/nonexistent/\xff\xfe\xc3", NULL, &checkpoint, &err));
    SAYS("/nonexistent/");
}

static void message_of_a_path_with_a_newline(void) {
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_IO, st_open("/nonexistent/two\nlines\x1b[2J", NULL, &checkpoint, &err));
    SAYS("two\\nlines");
}

static const test_case cases[] = {
    CASE(status_name_of_every_status),
    CASE(status_name_of_no_other_number),
    CASE(err_may_be_null),
    CASE(err_is_written_over_completely),
    CASE(message_names_file_tensor_and_numbers),
    CASE(message_is_cut_to_fit),
    CASE(message_stays_one_line_whatever_names_hold),
    CASE(message_stays_one_line_whatever_the_header_holds),
    CASE(message_of_a_path_that_is_not_utf8),
    CASE(message_of_a_path_with_a_newline),
};

TEST_MAIN(cases)
