/* The CUDA runtime, as far as device_upload uses it, over a fake device. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_device.h"

enum { SUCCESS = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, FAULT = 700, NOT_READY = 600 };

typedef struct event {
    fake_stream *stream;
    uint64_t copies;
} event;

const char *cudaGetErrorString(int error) {
    return error == NO_MEMORY ? "out of memory" : error == NO_DEVICE ? "no CUDA-capable device is detected" : "fake error";
}

int cudaGetDeviceCount(int *count) {
    *count = fake_devices();
    return fake_fails("cuda_init") || *count == 0 ? NO_DEVICE : SUCCESS;
}

int cudaSetDevice(int device) {
    return device < fake_devices() ? SUCCESS : INVALID;
}

int cudaDeviceGetPCIBusId(char *text, int len, int device) {
    snprintf(text, (size_t)len, "0000:0%d:00.0", device + 1);
    return SUCCESS;
}

int cudaHostAlloc(void **memory, size_t nbytes, unsigned flags) {
    *memory = flags == 0 ? fake_allocate_pinned(nbytes) : NULL;
    return *memory ? SUCCESS : NO_MEMORY;
}

int cudaFreeHost(void *memory) {
    fake_free(memory);
    return SUCCESS;
}

int cudaMalloc(void **memory, size_t nbytes) {
    *memory = fake_allocate(nbytes);
    return *memory ? SUCCESS : NO_MEMORY;
}

int cudaFree(void *memory) {
    fake_free(memory);
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t nbytes, int kind) {
    if (kind != 2)
        fake_broken("cudaMemcpy is for copies from the device here");
    fake_copy_out(to, from, nbytes);
    return SUCCESS;
}

int cudaMemcpyAsync(void *to, const void *from, size_t nbytes, int kind, fake_stream *stream) {
    if (kind != 1)
        fake_broken("cudaMemcpyAsync is for copies to the device here");
    if (fake_fails("copy"))
        return FAULT;
    fake_queue(stream, to, from, nbytes);
    return SUCCESS;
}

int cudaStreamCreateWithFlags(fake_stream **stream, unsigned flags) {
    *stream = flags == 1 ? fake_stream_begin() : NULL;
    return *stream ? SUCCESS : INVALID;
}

int cudaStreamDestroy(fake_stream *stream) {
    fake_stream_end(stream);
    return SUCCESS;
}

int cudaStreamSynchronize(fake_stream *stream) {
    fake_wait(stream, fake_queued(stream));
    return fake_has_failed(stream) ? FAULT : SUCCESS;
}

int cudaEventCreateWithFlags(event **made, unsigned flags) {
    *made = flags == 2 && !fake_fails("event") ? calloc(1, sizeof(event)) : NULL;
    if (*made)
        fake_object(1);
    return *made ? SUCCESS : INVALID;
}

int cudaEventDestroy(event *it) {
    free(it);
    fake_object(-1);
    return SUCCESS;
}

int cudaEventRecord(event *it, fake_stream *stream) {
    *it = (event){stream, fake_queued(stream)};
    return SUCCESS;
}

int cudaEventQuery(event *it) {
    if (fake_has_failed(it->stream))
        return FAULT;
    return fake_ended(it->stream) >= it->copies ? SUCCESS : NOT_READY;
}

int cudaEventSynchronize(event *it) {
    fake_wait(it->stream, it->copies);
    return fake_has_failed(it->stream) ? FAULT : SUCCESS;
}
