/* The files of tests/data: what each is refused for, and what is taken. */
#define _GNU_SOURCE

#include "constants.h"
#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 3 };

/* The rows of a table, split at tabs. Lines that are empty or start with # say nothing. */
static bool next_row(FILE *table, char *line, size_t room, char *columns[COLUMNS]) {
    while (fgets(line, (int)room, table)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!line[0] || line[0] == '#')
            continue;
        char *rest = line;
        for (int i = 0; i < COLUMNS; i++)
            columns[i] = rest ? strsep(&rest, "\t") : NULL;
        return true;
    }
    return false;
}

static FILE *open_table(const char *folder) {
    char path[4096];
    const char *data = test_setting("ST_TEST_DATA");
    if (!data)
        SKIP("ST_TEST_DATA is not set");
    snprintf(path, sizeof(path), "%s/%s/expected.tsv", data, folder);
    FILE *table = fopen(path, "r");
    if (!table)
        SKIP("there is no expected.tsv");
    return table;
}

static const char *path_of(const char *folder, const char *file) {
    static char path[4096];
    snprintf(path, sizeof(path), "%s/%s/%s", test_setting("ST_TEST_DATA"), folder, file);
    return path;
}

static st_status status_of(const char *name) {
#define STATUS(status, number)                                                                                         \
    if (strcmp(name, #status) == 0)                                                                                    \
        return status;
    STATUSES(STATUS)
    fprintf(stderr, "expected.tsv has the status %s\n", name);
    CHECK(!"a status of the header");
    return -1;
}

/* The file as a buffer of its own size, so that a read past the end is seen by valgrind and sanitizers. */
static unsigned char *bytes_of(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    if (!file)
        fprintf(stderr, "%s cannot be read\n", path);
    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    *len = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*len ? *len : 1);
    CHECK(bytes && fread(bytes, 1, *len, file) == *len);
    fclose(file);
    return bytes;
}

/* Whether a file is refused as its row says. */
static bool is_refused(st_status got, st_status want, const char *fragment) {
    const char *end = memchr(err.message, 0, sizeof(err.message));
    return got == want && err.status == want && end && strstr(err.message, fragment) &&
           test_is_one_line(err.message, (size_t)(end - err.message));
}

static void hostile_files_are_refused_each_for_its_reason(void) {
    FILE *table = open_table("hostile");
    char line[4096], *columns[COLUMNS];
    size_t files = 0, wrong = 0;
    while (next_row(table, line, sizeof(line), columns)) {
        CHECK(columns[0] && columns[1]);
        const char *path = path_of("hostile", columns[0]);
        const st_status status = status_of(columns[1]);
        for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_MEMORY; storage++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.storage = storage;
            st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
            size_t len;
            unsigned char *bytes = bytes_of(path, &len);
            test_before();
            st_status got = storage == ST_STORAGE_MEMORY ? st_open_buffer(bytes, len, &options, &checkpoint, &err)
                                                         : st_open(path, &options, &checkpoint, &err);
            const char *fragment = columns[2] ? columns[2] : "";
            CHECK(checkpoint == NULL || got == ST_OK);
            if (!is_refused(got, status, fragment)) {
                fprintf(stderr, "%s must give %s and say: %s\n    but gives %s and says: %s\n", columns[0], columns[1], fragment,
                        st_status_name(got), got == ST_OK ? "" : err.message);
                wrong++;
            }
            st_close(checkpoint);
            free(bytes);
        }
        files++;
    }
    fclose(table);
    printf("    %zu files\n", files);
    CHECK(files > 0 && wrong == 0);
}

static void check_valid(st_checkpoint *checkpoint) {
    for (size_t i = 0; i < st_len(checkpoint); i++) {
        st_tensor tensor;
        const void *data;
        size_t index, nbytes;
        OK(st_tensor_info(checkpoint, i, &tensor, &err));
        CHECK(st_find_n(checkpoint, tensor.name, tensor.name_len, &index) == ST_OK && index == i);
        OK(st_tensor_ptr(checkpoint, i, &data, &nbytes, &err));
        CHECK(data && nbytes == tensor.nbytes);
        unsigned char *read = malloc(nbytes ? nbytes : 1);
        CHECK(read);
        OK(st_tensor_read(checkpoint, i, NULL, 0, read, nbytes, &err));
        CHECK(memcmp(read, data, nbytes) == 0);
        free(read);
    }
}

static void valid_files_are_taken(void) {
    FILE *table = open_table("valid");
    char line[4096], *columns[COLUMNS];
    size_t files = 0;
    while (next_row(table, line, sizeof(line), columns)) {
        CHECK(columns[0] && columns[1]);
        const char *path = path_of("valid", columns[0]);
        size_t len;
        unsigned char *bytes = bytes_of(path, &len);
        for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_MEMORY; storage++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.storage = storage;
            st_checkpoint *checkpoint;
            test_before();
            st_status got = storage == ST_STORAGE_MEMORY ? st_open_buffer(bytes, len, &options, &checkpoint, &err)
                                                         : st_open(path, &options, &checkpoint, &err);
            test_after(__FILE__, __LINE__, columns[0], got, ST_OK);
            CHECK(st_len(checkpoint) == strtoull(columns[1], NULL, 10));
            check_valid(checkpoint);
            st_close(checkpoint);
        }
        free(bytes);
        files++;
    }
    fclose(table);
    printf("    %zu files\n", files);
    CHECK(files > 0);
}

static const test_case cases[] = {
    CASE(hostile_files_are_refused_each_for_its_reason),
    CASE(valid_files_are_taken),
};

TEST_MAIN(cases)
