/*
 * Verifies a checkpoint, a single file or sharded, by all the checksums that it carries and those that are given. Ends with 0 if it is
 * good, 1 if it is damaged, 3 if there is nothing to verify it by, and 2 if it cannot be read or was interrupted.
 */

#include <inttypes.h>
#include <safetensors_lazy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../common/arguments.h"
#include "../common/watch.h"

enum { GOOD, DAMAGED, FAILED, NOTHING_TO_VERIFY };

static const char usage[] =
    "[--sha256 HEX]... model\n"
    "  --sha256 HEX   the digest of the file, or of each shard's, in the order of their names; - for one that is not known\n";

/* The names of kinds of checksums. */
static const char *names_of(uint32_t checks, char names[64]) {
    static const struct {
        uint32_t check;
        const char *name;
    } kinds[] = {{ST_CHECK_CRC, "CRC"},
                 {ST_CHECK_SHA256, "SHA-256"},
                 {ST_CHECK_BLAKE3, "BLAKE3"},
                 {ST_CHECK_FILE_SHA256, "SHA-256 of files"}};
    names[0] = 0;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (checks & kinds[i].check)
            strcat(strcat(names, names[0] ? ", " : ""), kinds[i].name);
    return names;
}

static void print_damage(const st_checkpoint *model, const st_verify_report *report, const char *message) {
    char names[64];
    printf("damaged, by %s: %" PRIu64 " of %zu file(s)", names_of(report->bad_checks, names), report->bad_shards, st_shard_len(model));
    if (report->bad_tensors)
        printf(", %" PRIu64 " of %zu tensors", report->bad_tensors, st_len(model));
    printf("\n%s\n", message);
}

static int verify(st_checkpoint *model, const char *const *sha256, size_t sha256_len) {
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    st_verify_report report;
    st_error err;
    options.sha256 = sha256;
    options.sha256_len = sha256_len;
    st_status status = st_task_new(&options.task, &err);
    if (status == ST_OK) {
        watch *watch = watch_begin(options.task, "verifying");
        status = st_verify(model, &options, &report, &err);
        watch_end(watch);
    }
    if (status == ST_OK || status == ST_ERR_CHECKSUM_MISMATCH) {
        st_progress progress;
        char names[64];
        st_task_progress(options.task, &progress);
        printf("%" PRIu64 " tensors in %zu file(s), %.2f MB at %.2f GB/s, verified by %s\n", report.tensors, st_shard_len(model),
               (double)report.bytes / 1e6, (double)progress.bytes_per_second / 1e9, names_of(report.checks, names));
    }
    st_task_free(options.task);
    if (status == ST_OK) {
        puts("good");
        return GOOD;
    }
    if (status == ST_ERR_CHECKSUM_MISMATCH) {
        print_damage(model, &report, err.message);
        return DAMAGED;
    }
    fprintf(stderr, "%s: %s\n", st_status_name(status), err.message);
    return status == ST_ERR_CHECKSUM_MISSING ? NOTHING_TO_VERIFY : FAILED;
}

int main(int argc, char **argv) {
    if (answer_help(argc, argv, usage))
        return GOOD;
    const char *path = NULL, *wrong = NULL;
    const char **sha256 = calloc((size_t)argc + 1, sizeof(*sha256));
    size_t sha256_len = 0;
    int outcome = FAILED;
    if (!sha256) {
        fprintf(stderr, "there is no memory for the arguments\n");
        return FAILED;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--sha256") == 0 && i + 1 < argc) {
            i++;
            sha256[sha256_len++] = strcmp(argv[i], "-") == 0 ? NULL : argv[i];
        } else if (path || argv[i][0] == '-') {
            wrong = argv[i];
            break;
        } else {
            path = argv[i];
        }
    }
    if (wrong && strcmp(wrong, "--sha256") == 0) {
        outcome = refuse_arguments(argv, usage, "--sha256 needs a digest", NULL);
    } else if (wrong) {
        outcome = refuse_argument(argv, usage, wrong);
    } else if (!path) {
        outcome = refuse_arguments(argv, usage, "no model is given", NULL);
    } else {
        st_checkpoint *model;
        st_error err;
        if (st_open(path, NULL, &model, &err) == ST_OK)
            outcome = verify(model, sha256, sha256_len);
        else
            fprintf(stderr, "%s: %s\n", st_status_name(err.status), err.message);
        st_close(model);
    }
    free(sha256);
    return outcome;
}
