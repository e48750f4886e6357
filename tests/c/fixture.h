/* Checkpoints for the tests, and a folder to put them in, which goes when the program ends. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <safetensors_lazy.h>

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fixture_tensor {
    const char *name;  /* as JSON spells it, without the quotes */
    const char *dtype; /* NULL: F32 */
    const char *shape; /* as JSON: "[2,3]" */
    size_t nbytes;
    const void *data; /* NULL: fixture_byte */
} fixture_tensor;

typedef struct fixture {
    const fixture_tensor *tensors;
    size_t len;
    const char *metadata; /* as JSON; NULL: none */
    size_t shift;         /* the first tensor lies so many bytes after a multiple of 64 */
} fixture;

/* The sample: aligned and misaligned, empty and scalar tensors. SAMPLE_X is the index of x, SAMPLE_X_AT its place in the data. */
extern const fixture fixture_sample;
enum { SAMPLE_WEIGHT, SAMPLE_BIAS, SAMPLE_ODD, SAMPLE_BYTE, SAMPLE_EMPTY, SAMPLE_SCALAR, SAMPLE_LEN };
enum { SAMPLE_WEIGHT_AT = 0, SAMPLE_BIAS_AT = 80, SAMPLE_ODD_AT = 90, SAMPLE_BYTE_AT = 102, SAMPLE_SCALAR_AT = 103 };
enum { SAMPLE_WEIGHT_SIZE = 80, SAMPLE_ODD_SIZE = 12, SAMPLE_DATA_SIZE = 111 };

/* Byte i of the data of a fixture. The period is prime, so that swapped or shifted bytes do not look right. */
unsigned char fixture_byte(size_t i);

/* Whether len bytes are those from i on of the data of a fixture. */
int fixture_is(const void *bytes, size_t i, size_t len);

/* The bytes of the file, to be freed. */
unsigned char *fixture_bytes(const fixture *fixture, size_t *len);

/* A path in the temporary folder. Valid until the 32nd call after this one. */
const char *fixture_path(const char *name);

/* Writes a file into the temporary folder, and gives its path. */
const char *fixture_write(const char *name, const fixture *fixture);
void fixture_write_bytes(const char *path, const void *bytes, size_t len);

/* Opens a file, an index or a folder that must be right. */
st_checkpoint *fixture_open_path(const char *path, int32_t storage, uint32_t flags);

/* Opens a fixture: as a file, or for ST_STORAGE_MEMORY as a buffer that lives until the program ends. */
st_checkpoint *fixture_open(const fixture *fixture, int32_t storage, uint32_t flags);

/*
 * The sharded sample: tensors cut from one run of bytes and dealt to three shards, in the order of their indices. The shards' metadata
 * has 3 keys, for one of which the later shards have other values.
 */
typedef struct fixture_part {
    const char *name;
    size_t shard, at, nbytes;
} fixture_part;
enum { SHARDED_EMBED, SHARDED_NORM, SHARDED_ONE, SHARDED_THREE, SHARDED_HEAD, SHARDED_LEN, SHARDS = 3, SHARDED_CONFLICTS = 2 };
extern const fixture_part fixture_sharded[SHARDED_LEN];
extern const char *const fixture_shards[SHARDS];
extern const char fixture_index[];

/*
 * Writes the sharded sample into a folder in the temporary one, which is made if it is not there, and gives its path. The index is
 * called fixture_index.
 */
const char *fixture_write_sharded(const char *folder, int with_index);

/* As fixture_path, for a file in a folder in the temporary one. */
const char *fixture_path_in(const char *folder, const char *name);

/*
 * A generation of a checkpoint, for tests that replace one by another: its number is in its metadata and goes into all of its
 * bytes. Its tensors, "t0" and so on, have nbytes bytes each.
 */
typedef struct fixture_generation {
    unsigned number;
    size_t tensors, nbytes;
    size_t shards;  /* which have as many tensors each; 0: one file, and no max_shard_bytes */
    uint32_t flags; /* ST_WRITE_* */
    int streamed;   /* 1: declared, and written in turns, in two pieces each; 2: one after the other, in two pieces each */
} fixture_generation;

/* Where byte 0 of a tensor of a generation lies among those of fixture_byte. */
size_t fixture_shift(const fixture_generation *generation, size_t tensor);

/* len bytes of fixture_byte, from any i below 251 on, that live until the program ends. Several threads may not ask for more at once. */
const unsigned char *fixture_run(size_t i, size_t len);

/* A generation while it is written. */
typedef struct fixture_writing {
    const fixture_generation *generation;
    const char *path;
    st_task *task; /* NULL: none */
    st_writer *writer;
    size_t has_metadata, added, pieces;
} fixture_writing;

/* Writes it, from where an earlier call failed on. After a failure a writer that is not NULL is to be aborted in the end. */
st_status fixture_go_on(fixture_writing *writing, st_error *error);

/* Writes it, which must succeed. */
void fixture_put(const char *path, const fixture_generation *generation);

/* The same without waiting for the disk. */
void fixture_put_quickly(const char *path, const fixture_generation *generation);

/* Which of these generations is found, through the index if there is one; all of it must be there. */
const fixture_generation *fixture_found(const char *path, const fixture_generation *generations, size_t len);

/* The same of what this path leads to, which may also be an index or a folder. */
const fixture_generation *fixture_found_at(const char *path, const fixture_generation *generations, size_t len);

/* Removes all files in the folder of path. */
void fixture_empty(const char *path);

/* The folder of path holds the files of this generation, and no others. */
void fixture_only(const char *path, const fixture_generation *generation);

/* Whether the files of a generation are the same, byte for byte, in two places. */
int fixture_same(const char *path, const char *other, const fixture_generation *generation);

/* All bytes of a file, to be freed. */
unsigned char *fixture_slurp(const char *path, size_t *len);

/* Flips the lowest bit of a byte of a file. */
void fixture_flip(const char *path, uint64_t offset);

/* Makes a folder in the temporary one, and gives the path of "model.safetensors" there. */
const char *fixture_model_in(const char *folder);

/* The four storages. */
extern const int32_t fixture_storages[4];

#ifdef __cplusplus
}
#endif

#endif
