/*
 * What the tests of loading share: a checkpoint with tensors of every kind, and a load that is watched: whatever arrives
 * is held against what st_tensor_read gives, and against all that the header promises for every load.
 */
#ifndef LOADING_H
#define LOADING_H

#include "fixture.h"

#include <stdbool.h>

/* Some 6 MiB, most of it in few tensors, of which none after "byte" is aligned. */
extern const fixture loading_model;
enum { L_SCALAR, L_EMPTY, L_SMALL, L_MATRIX, L_LARGE, L_CUBE, L_TAIL, L_BYTE, L_ODD, L_ROWS, L_LAST, L_LEN };

/* The engines for files, ST_ENGINE_AUTO first; and with that for memory. Whether one can be asked for over a storage. */
extern const int32_t loading_engines[4], loading_every_engine[5];
bool loading_fits(int32_t storage, int32_t engine);

/* What takes the place of an engine that was asked for, for files in the temporary folder. */
int32_t loading_engine_here(int32_t engine);

/* The size of what a request asks for. */
size_t loading_size(const st_checkpoint *checkpoint, const st_request *request);

/* A staged request for each tensor; gives how many there are. Tags differ from places. */
size_t loading_whole(const st_checkpoint *checkpoint, st_request *out, size_t most);

/* A load, and what has arrived of it. */
typedef struct loading {
    st_checkpoint *checkpoint;
    const st_request *requests;
    size_t n;
    size_t *sizes, *arrived; /* in bytes, of each request */
    unsigned char **expected;
    st_status *status; /* not ST_OK: the request failed, or a piece of it */
    bool *has_ended;
    size_t ended, pieces, failed;
    uint32_t engines;
    st_load_options options;
    st_load *load;
} loading;

/* Reads what is to arrive. The requests must stay until loading_free. */
loading loading_of(st_checkpoint *checkpoint, const st_request *requests, size_t n);

/* Starts, or starts anew. options: NULL for the defaults. */
void loading_start(loading *loading, const st_load_options *options);

/* The same where it may fail. */
st_status loading_try(loading *loading, const st_load_options *options);

/* st_load_next, with a look at everything that it gives. ST_OK, or what it returned. */
st_status loading_next(loading *loading, int64_t timeout_ms, st_loaded *out);

/* Whether the bytes of what has arrived are still what they should be. */
bool loading_is_right(const loading *loading, const st_loaded *told);

/* st_load_recycle, twice: once is enough. */
void loading_recycle(loading *loading, const st_loaded *loaded);

/* Takes all that is left until ST_DONE. What fails is counted, and its status noted. */
void loading_drain(loading *loading);

/* Drains it, sees to it that nothing has failed and that the numbers are right, and frees the load. */
void loading_end(loading *loading);

void loading_free(loading *loading);

/* All of this. */
void loading_all(st_checkpoint *checkpoint, const st_request *requests, size_t n, const st_load_options *options);

/* The options of an engine. */
st_load_options loading_by(int32_t engine);

/*
 * Memory of len bytes between pages that cannot be touched. at_end: it ends where such a page begins; otherwise it
 * starts where one ends. Freed by loading_unguard.
 */
unsigned char *loading_guarded(size_t len, bool at_end);
void loading_unguard(unsigned char *bytes, size_t len);

/* Puts a file, as far as the system does so, out of the page cache. */
void loading_drop(const char *path);

/* A generator, so that a failure repeats: a number below limit. */
uint64_t loading_random(uint64_t limit);

#endif
