/* Shorthands of the tests of residency: calls that must work, and files of tensors of given sizes. */
#ifndef RESIDENCY_H
#define RESIDENCY_H

#include "fixture.h"
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_TENSORS = 64, MOST_PAGE = 1 << 16 };

static inline size_t page_size(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

/*
 * A file of tensors t0, t1, ... of these sizes in bytes. The first lies `shift` (below 64) bytes after the start of a page. Valid until
 * the next call.
 */
static inline const fixture *tensors_of(const char *dtype, size_t element, const size_t *nbytes, size_t len, size_t shift) {
    static char names[MOST_TENSORS][8], shapes[MOST_TENSORS][24], metadata[MOST_PAGE + 64];
    static fixture_tensor tensors[MOST_TENSORS];
    static fixture file;
    CHECK(len <= MOST_TENSORS && page_size() <= MOST_PAGE);
    for (size_t i = 0; i < len; i++) {
        snprintf(names[i], sizeof(names[i]), "t%zu", i);
        snprintf(shapes[i], sizeof(shapes[i]), "[%zu]", nbytes[i] / element);
        tensors[i] = (fixture_tensor){names[i], dtype, shapes[i], nbytes[i], NULL};
    }
    /* Made twice: the first time to see how much metadata moves the data to a page. */
    file = (fixture){tensors, len, "{\"pad\":\"\"}", 0};
    size_t size, data = 0;
    free(fixture_bytes(&file, &size));
    for (size_t i = 0; i < len; i++)
        data += nbytes[i];
    const size_t pad = (page_size() - (size - data) % page_size()) % page_size();
    snprintf(metadata, sizeof(metadata), "{\"pad\":\"%0*d\"}", (int)pad, 0);
    if (pad == 0)
        strcpy(metadata, "{\"pad\":\"\"}");
    file.metadata = metadata;
    file.shift = shift;
    return &file;
}

static inline st_residency_info look(const st_checkpoint *checkpoint, size_t index) {
    st_residency_info info;
    OK(st_residency(checkpoint, index, &info, &err));
    return info;
}

static inline const unsigned char *acquire(st_checkpoint *checkpoint, size_t index) {
    const void *data = NULL;
    OK(st_acquire(checkpoint, index, &data, NULL, &err));
    CHECK(data);
    return data;
}

static inline void release(st_checkpoint *checkpoint, size_t index) {
    OK(st_release(checkpoint, index, &err));
}

/* Makes it the most recently used that is not in use. */
static inline void use(st_checkpoint *checkpoint, size_t index) {
    acquire(checkpoint, index);
    release(checkpoint, index);
}

static inline void evict(st_checkpoint *checkpoint, size_t index) {
    OK(st_evict(checkpoint, index, 0, &err));
}

static inline void set_budget(st_checkpoint *checkpoint, uint64_t bytes) {
    OK(st_set_budget(checkpoint, bytes, &err));
}

static inline const unsigned char *pointer_to(st_checkpoint *checkpoint, size_t index) {
    const void *data = NULL;
    OK(st_tensor_ptr(checkpoint, index, &data, NULL, &err));
    return data;
}

static inline size_t size_of(const st_checkpoint *checkpoint, size_t index) {
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, index, &tensor, &err));
    return tensor.nbytes;
}

/* Reads a byte of each page. */
static inline unsigned touch(const unsigned char *bytes, size_t len) {
    unsigned sum = 0;
    for (size_t at = 0; at < len; at += page_size())
        sum += *(const volatile unsigned char *)(bytes + at);
    return len ? sum + *(const volatile unsigned char *)(bytes + len - 1) : sum;
}

#endif
