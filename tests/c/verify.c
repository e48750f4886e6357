/* Checking: st_verify, and st_open_options.verify. */
#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <string.h>

/* A file that MindSpore wrote with a sum. */
static const char *mindspore_path(void) {
    static char path[4096];
    const char *data = test_setting("ST_TEST_DATA");
    if (!data)
        SKIP("ST_TEST_DATA is not set");
    snprintf(path, sizeof(path), "%s/mindspore/crc_mixed.safetensors", data);
    return path;
}

static void verify_crc_of_mindspore(void) {
    st_checkpoint *checkpoint = fixture_open_path(mindspore_path(), ST_STORAGE_AUTO, 0);
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    options.checks = ST_CHECK_CRC;
    st_verify_report report;
    OK(st_verify(checkpoint, &options, &report, &err));
    CHECK(report.tensors == st_len(checkpoint) && report.bad_tensors == 0 && report.bad_shards == 0);
    CHECK(report.first_bad_tensor == ST_ALL && report.first_bad_shard == ST_ALL);
    CHECK(report.checks == ST_CHECK_CRC && report.bad_checks == 0);
    options.checks = ST_CHECK_BLAKE3;
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, &options, &report, &err));
    st_close(checkpoint);
}

static const test_case cases[] = {
    CASE(verify_crc_of_mindspore),
};

TEST_MAIN(cases)
