/* The ACL runtime, as far as device_upload uses it, over a fake device. */

#include <stdlib.h>

#include "fake_device.h"

enum { SUCCESS = 0, INVALID = 107000, NO_MEMORY = 207001, FAULT = 507000 };

typedef struct event {
    fake_stream *stream;
    uint64_t copies;
} event;

const char *aclGetRecentErrMsg(void) {
    return "fake error";
}

int aclInit(const char *path) {
    if (path || fake_fails("acl_init"))
        return INVALID;
    fake_object(1);
    return SUCCESS;
}

int aclFinalize(void) {
    fake_object(-1);
    return SUCCESS;
}

const char *aclrtGetSocName(void) {
    return "FakeAscend";
}

int aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)fake_devices();
    return SUCCESS;
}

int aclrtSetDevice(int32_t device) {
    fake_object(1);
    return device < fake_devices() ? SUCCESS : INVALID;
}

int aclrtResetDevice(int32_t device) {
    fake_object(-1);
    return device < fake_devices() ? SUCCESS : INVALID;
}

int aclrtMallocHost(void **memory, size_t nbytes) {
    *memory = fake_allocate_pinned(nbytes);
    return *memory ? SUCCESS : NO_MEMORY;
}

int aclrtFreeHost(void *memory) {
    fake_free(memory);
    return SUCCESS;
}

int aclrtMalloc(void **memory, size_t nbytes, int policy) {
    *memory = policy == 0 ? fake_allocate(nbytes) : NULL;
    return *memory ? SUCCESS : NO_MEMORY;
}

int aclrtFree(void *memory) {
    fake_free(memory);
    return SUCCESS;
}

int aclrtMemcpy(void *to, size_t most, const void *from, size_t nbytes, int kind) {
    if (kind != 2 || nbytes > most)
        fake_broken("aclrtMemcpy is for copies from the device here");
    fake_copy_out(to, from, nbytes);
    return SUCCESS;
}

int aclrtMemcpyAsync(void *to, size_t most, const void *from, size_t nbytes, int kind, fake_stream *stream) {
    if (kind != 1 || nbytes > most)
        fake_broken("aclrtMemcpyAsync is for copies to the device here");
    if ((uintptr_t)to % 64 != 0 || (uintptr_t)from % 64 != 0)
        fake_broken("aclrtMemcpyAsync of addresses that are not aligned to 64");
    if (fake_fails("copy"))
        return FAULT;
    fake_queue(stream, to, from, nbytes);
    return SUCCESS;
}

int aclrtCreateStream(fake_stream **stream) {
    *stream = fake_stream_begin();
    return *stream ? SUCCESS : INVALID;
}

int aclrtDestroyStream(fake_stream *stream) {
    fake_stream_end(stream);
    return SUCCESS;
}

/* The only one to tell of copies that went wrong: events pass all the same. */
int aclrtSynchronizeStream(fake_stream *stream) {
    fake_wait(stream, fake_queued(stream));
    return fake_has_failed(stream) ? FAULT : SUCCESS;
}

int aclrtCreateEvent(event **made) {
    *made = fake_fails("event") ? NULL : calloc(1, sizeof(event));
    if (*made)
        fake_object(1);
    return *made ? SUCCESS : NO_MEMORY;
}

int aclrtDestroyEvent(event *it) {
    free(it);
    fake_object(-1);
    return SUCCESS;
}

int aclrtRecordEvent(event *it, fake_stream *stream) {
    if (it->stream)
        fake_broken("an event is recorded twice");
    *it = (event){stream, fake_queued(stream)};
    return SUCCESS;
}

int aclrtQueryEventStatus(event *it, int *status) {
    *status = fake_ended(it->stream) >= it->copies;
    return SUCCESS;
}

int aclrtSynchronizeEvent(event *it) {
    fake_wait(it->stream, it->copies);
    return SUCCESS;
}
