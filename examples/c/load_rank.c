/*
 * Loads what one rank has of a model, a single file or sharded, through one buffer: of each tensor its rows, and of tensors with fewer
 * rows than there are ranks all. Prints what that took, and ends with 1 if it was more memory than the limit.
 */

#include <errno.h>
#include <inttypes.h>
#include <safetensors_lazy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../common/arguments.h"

static const char usage[] = "model rank world [MiB]\n";

typedef struct job {
    st_checkpoint *model;
    uint32_t rank, world;
    unsigned char *buffer;
    size_t buffer_size;
    uint64_t needed;   /* bytes of this rank's parts */
    uint64_t checksum; /* of what was written to the device */
    st_error err;
} job;

/* Stands for a copy to a device. */
static void device_write(job *job, const unsigned char *bytes, uint64_t len) {
    for (uint64_t i = 0; i < len; i++) /* FNV-1a */
        job->checksum = (job->checksum ^ bytes[i]) * 0x100000001b3;
}

static uint64_t bytes_of(const st_tensor *tensor, const st_range *ranges) {
    uint64_t bits = st_dtype_bits(tensor->dtype);
    for (uint32_t d = 0; d < tensor->rank; d++)
        bits *= ranges[d].stop - ranges[d].start;
    return bits / 8;
}

/* Takes a part of a tensor to the device: at once if the buffer holds it, otherwise one half after the other. */
static st_status upload(job *job, size_t index, const st_tensor *tensor, st_range *ranges) {
    const uint64_t len = bytes_of(tensor, ranges);
    if (len <= job->buffer_size) {
        st_status status = st_tensor_read(job->model, index, ranges, tensor->rank, job->buffer, job->buffer_size, &job->err);
        if (status == ST_OK)
            device_write(job, job->buffer, len);
        return status;
    }
    uint32_t d = 0;
    while (ranges[d].stop - ranges[d].start < 2) /* rows, or else columns of the row that is left */
        d++;
    const st_range whole = ranges[d];
    const uint64_t middle = whole.start + (whole.stop - whole.start) / 2;
    ranges[d] = (st_range){whole.start, middle};
    st_status status = upload(job, index, tensor, ranges);
    ranges[d] = (st_range){middle, whole.stop};
    if (status == ST_OK)
        status = upload(job, index, tensor, ranges);
    ranges[d] = whole;
    return status;
}

static st_status load_tensor(job *job, size_t index) {
    st_tensor tensor;
    st_range ranges[ST_MAX_RANK];
    st_status status = st_tensor_info(job->model, index, &tensor, &job->err);
    if (status != ST_OK)
        return status;
    if (tensor.rank > ST_MAX_RANK) {
        snprintf(job->err.message, sizeof(job->err.message), "%s has too many dimensions", tensor.name);
        return ST_ERR_UNSUPPORTED;
    }
    for (uint32_t d = 0; d < tensor.rank; d++)
        ranges[d] = (st_range){0, tensor.shape[d]};
    if (tensor.rank > 0 && tensor.shape[0] >= job->world)
        status = st_split_range(tensor.shape[0], job->rank, job->world, &ranges[0], &job->err);
    if (status != ST_OK)
        return status;
    job->needed += bytes_of(&tensor, ranges);
    return upload(job, index, &tensor, ranges);
}

/* A number that Linux tells about this process; 0 if it does not. */
static uint64_t proc_number(const char *path, const char *key) {
    uint64_t number = 0;
    char line[256];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof(line), file))
        if (strncmp(line, key, strlen(key)) == 0)
            number = strtoull(line + strlen(key), NULL, 10);
    if (file)
        fclose(file);
    return number;
}

static int number_of(const char *text, uint32_t *number) {
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    *number = (uint32_t)value;
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && errno == 0 && value <= UINT32_MAX;
}

int main(int argc, char **argv) {
    job job = {.checksum = 0xcbf29ce484222325};
    uint32_t limit_mib = 512;
    if (answer_help(argc, argv, usage))
        return 0;
    for (int i = 1; i < argc; i++)
        if (i > 4 || argv[i][0] == '-')
            return refuse_argument(argv, usage, argv[i]);
    if (argc < 4)
        return refuse_arguments(argv, usage, "model, rank and world are needed", NULL);
    if (!number_of(argv[2], &job.rank))
        return refuse_arguments(argv, usage, "rank must be a whole number, not", argv[2]);
    if (!number_of(argv[3], &job.world) || job.world == 0)
        return refuse_arguments(argv, usage, "world must be a whole number from 1, not", argv[3]);
    if (argc > 4 && (!number_of(argv[4], &limit_mib) || limit_mib == 0))
        return refuse_arguments(argv, usage, "MiB must be a whole number from 1, not", argv[4]);
    const double MB = 1e6;
    const uint64_t limit = (uint64_t)limit_mib << 20, read_before = proc_number("/proc/self/io", "rchar:");
    job.buffer_size = limit / 8;
    job.buffer = malloc(job.buffer_size);
    if (!job.buffer) {
        fprintf(stderr, "there is no memory for a buffer of %zu bytes\n", job.buffer_size);
        return 1;
    }
    st_status status = st_open(argv[1], NULL, &job.model, &job.err);
    for (size_t i = 0; status == ST_OK && i < st_len(job.model); i++)
        status = load_tensor(&job, i);

    const uint64_t read = proc_number("/proc/self/io", "rchar:") - read_before;
    const uint64_t peak = proc_number("/proc/self/status", "VmHWM:") * 1024;
    if (status == ST_OK) {
        printf("rank %" PRIu32 " of %" PRIu32 ": %zu tensors, %.2f MB needed, %.2f MB read, checksum %" PRIx64 "\n", job.rank,
               job.world, st_len(job.model), job.needed / MB, read / MB, job.checksum);
        printf("peak memory %.2f MB of %.2f MB\n", peak / MB, limit / MB);
    } else {
        fprintf(stderr, "%s: %s\n", st_status_name(status), job.err.message);
    }
    if (status == ST_OK && peak > limit)
        fprintf(stderr, "more memory was used than the limit allows\n");
    st_close(job.model);
    free(job.buffer);
    return status != ST_OK || peak > limit;
}
