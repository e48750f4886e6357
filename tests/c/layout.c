/* Sizes, offsets and numbers that programs are compiled with. Compiled as C11 and as C++17; the header needs nothing before it. */
#include <safetensors_lazy.h>

#include <assert.h>

#include "constants.h"

#define SIZE(type, size) static_assert(sizeof(type) == (size), #type)
#define AT(type, field, offset) static_assert(offsetof(type, field) == (offset), #type "." #field)

static_assert(sizeof(size_t) == 8 && sizeof(void *) == 8, "these are the layouts of 64-bit systems");

SIZE(st_status, 4);
SIZE(st_dtype, 4);

SIZE(st_error, 512);
AT(st_error, status, 0);
AT(st_error, os_error, 4);
AT(st_error, message, 8);

SIZE(st_open_options, 32);
AT(st_open_options, struct_size, 0);
AT(st_open_options, storage, 8);
AT(st_open_options, flags, 12);
AT(st_open_options, budget, 16);
AT(st_open_options, verify, 24);
AT(st_open_options, reserved, 28);

SIZE(st_tensor, 64);
AT(st_tensor, name, 0);
AT(st_tensor, name_len, 8);
AT(st_tensor, dtype, 16);
AT(st_tensor, rank, 20);
AT(st_tensor, shape, 24);
AT(st_tensor, nbytes, 32);
AT(st_tensor, shard, 40);
AT(st_tensor, file_offset, 48);
AT(st_tensor, alignment, 56);

SIZE(st_info, 40);
AT(st_info, file_bytes, 0);
AT(st_info, header_bytes, 8);
AT(st_info, tensor_bytes, 16);
AT(st_info, metadata_conflicts, 24);
AT(st_info, storage, 32);
AT(st_info, writable, 36);

SIZE(st_range, 16);
AT(st_range, start, 0);
AT(st_range, stop, 8);

SIZE(st_view, 1056);
AT(st_view, data, 0);
AT(st_view, dtype, 8);
AT(st_view, rank, 12);
AT(st_view, shape, 16);
AT(st_view, strides, 528);
AT(st_view, nbytes, 1040);
AT(st_view, contiguous, 1048);

SIZE(st_residency_info, 64);
AT(st_residency_info, resident_bytes, 0);
AT(st_residency_info, in_use_bytes, 8);
AT(st_residency_info, copied_bytes, 16);
AT(st_residency_info, charged_bytes, 24);
AT(st_residency_info, budget, 32);
AT(st_residency_info, hits, 40);
AT(st_residency_info, misses, 48);
AT(st_residency_info, evictions, 56);

SIZE(st_layout, 56);
AT(st_layout, struct_size, 0);
AT(st_layout, device_matrix, 8);
AT(st_layout, device_dims, 16);
AT(st_layout, tensor_map, 24);
AT(st_layout, tensor_map_starts, 32);
AT(st_layout, tensor_map_len, 40);
AT(st_layout, optimizer_shard, 48);

SIZE(st_progress, 56);
AT(st_progress, bytes_done, 0);
AT(st_progress, bytes_total, 8);
AT(st_progress, items_done, 16);
AT(st_progress, items_total, 24);
AT(st_progress, bytes_per_second, 32);
AT(st_progress, bytes_read, 40);
AT(st_progress, engines, 48);
AT(st_progress, workers, 52);

SIZE(st_request, 48);
AT(st_request, index, 0);
AT(st_request, ranges, 8);
AT(st_request, rank, 16);
AT(st_request, dst, 24);
AT(st_request, dst_len, 32);
AT(st_request, tag, 40);

SIZE(st_load_options, 64);
AT(st_load_options, struct_size, 0);
AT(st_load_options, flags, 8);
AT(st_load_options, engine, 12);
AT(st_load_options, workers, 16);
AT(st_load_options, queue_depth, 20);
AT(st_load_options, block_bytes, 24);
AT(st_load_options, staging, 32);
AT(st_load_options, staging_bytes, 40);
AT(st_load_options, piece_bytes, 48);
AT(st_load_options, over_read, 56);
AT(st_load_options, reserved, 60);

SIZE(st_loaded, 72);
AT(st_loaded, tag, 0);
AT(st_loaded, request, 8);
AT(st_loaded, index, 16);
AT(st_loaded, data, 24);
AT(st_loaded, nbytes, 32);
AT(st_loaded, offset, 40);
AT(st_loaded, buffer, 48);
AT(st_loaded, status, 56);
AT(st_loaded, engine, 60);
AT(st_loaded, last, 64);
AT(st_loaded, reserved, 68);

SIZE(st_verify_options, 48);
AT(st_verify_options, struct_size, 0);
AT(st_verify_options, checks, 8);
AT(st_verify_options, flags, 12);
AT(st_verify_options, workers, 16);
AT(st_verify_options, reserved, 20);
AT(st_verify_options, sha256, 24);
AT(st_verify_options, sha256_len, 32);
AT(st_verify_options, task, 40);

SIZE(st_verify_report, 56);
AT(st_verify_report, bytes, 0);
AT(st_verify_report, tensors, 8);
AT(st_verify_report, bad_tensors, 16);
AT(st_verify_report, first_bad_tensor, 24);
AT(st_verify_report, bad_shards, 32);
AT(st_verify_report, first_bad_shard, 40);
AT(st_verify_report, checks, 48);
AT(st_verify_report, bad_checks, 52);

SIZE(st_writer_options, 32);
AT(st_writer_options, struct_size, 0);
AT(st_writer_options, flags, 8);
AT(st_writer_options, alignment, 12);
AT(st_writer_options, max_shard_bytes, 16);
AT(st_writer_options, task, 24);

#define STATUS(status, number) static_assert(status == number, #status);
STATUSES(STATUS)
#define DTYPE(dtype, number, name, bits, code) static_assert(dtype == number, #dtype);
DTYPES(DTYPE)

static_assert(ST_STORAGE_AUTO == 0 && ST_STORAGE_MMAP == 1 && ST_STORAGE_READ == 2 && ST_STORAGE_MEMORY == 3, "");
static_assert(ST_OPEN_COPY_ON_WRITE == 1 && ST_OPEN_POPULATE == 2 && ST_OPEN_LOCK == 4, "");
static_assert(ST_OPEN_FOLLOW_LINKS == 8 && ST_EVICT_PAGE_CACHE == 1 && ST_ALL == SIZE_MAX, "");
static_assert(ST_WRITE_INSERTION_ORDER == 1 && ST_WRITE_NO_SYNC == 2 && ST_WRITE_CRC == 4, "");
static_assert(ST_WRITE_SHA256 == 8 && ST_WRITE_BLAKE3 == 16, "");
static_assert(ST_ENGINE_AUTO == 0 && ST_ENGINE_MEMORY == 1 && ST_ENGINE_BUFFERED == 2, "");
static_assert(ST_ENGINE_DIRECT == 4 && ST_ENGINE_URING == 8, "");
static_assert(ST_LOAD_IN_ORDER == 1 && ST_OVER_READ_NONE == UINT32_MAX, "");
static_assert(ST_END == UINT64_MAX && ST_MAX_RANK == 64, "");
static_assert(sizeof(((st_view *)0)->shape) == ST_MAX_RANK * sizeof(uint64_t), "");

int main(void) {
    const st_open_options options = ST_OPEN_OPTIONS_INIT;
    const st_layout layout = ST_LAYOUT_INIT;
    const st_writer_options writer = ST_WRITER_OPTIONS_INIT;
    const st_load_options load = ST_LOAD_OPTIONS_INIT;
    if (options.struct_size != sizeof(options) || options.storage != 0 || options.flags != 0 || options.budget != 0)
        return 1;
    if (layout.struct_size != sizeof(layout) || layout.device_matrix || layout.device_dims != 0 || layout.tensor_map)
        return 1;
    if (writer.struct_size != sizeof(writer) || writer.flags || writer.alignment || writer.max_shard_bytes || writer.task)
        return 1;
    if (load.struct_size != sizeof(load) || load.flags || load.engine || load.workers || load.queue_depth || load.block_bytes)
        return 1;
    if (load.staging || load.staging_bytes || load.piece_bytes || load.over_read || load.reserved)
        return 1;
    return layout.tensor_map_starts || layout.tensor_map_len != 0 || layout.optimizer_shard != 0;
}
