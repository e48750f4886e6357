#define _GNU_SOURCE

#include "fake_device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, PAGE = 4096 };

/* Pinned memory is where it is. That of the device is elsewhere, and what is given out for it cannot be touched. */
typedef struct block {
    unsigned char *address, *bytes;
    size_t nbytes;
} block;

typedef struct copy {
    struct copy *next;
    unsigned char *to;
    const unsigned char *from;
    size_t nbytes;
    int fails;
} copy;

struct fake_stream {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    copy *first, *last;
    uint64_t queued, ended;
    int failed, over;
};

static pthread_mutex_t blocks_mutex = PTHREAD_MUTEX_INITIALIZER;
static block blocks[MOST];
static int objects, failures_seen;

void fake_broken(const char *rule) {
    fprintf(stderr, "fake device: %s\n", rule);
    _exit(99);
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

int fake_devices(void) {
    return (int)setting("FAKE_DEVICES", 1);
}

int fake_fails(const char *what) {
    const char *text = getenv("FAKE_FAILS"), *at = text ? strchr(text, '@') : NULL;
    if (!at || strncmp(text, what, (size_t)(at - text)) != 0 || what[at - text] != 0)
        return 0;
    return ++failures_seen == atoi(at + 1);
}

static void *add(unsigned char *address, unsigned char *bytes, size_t nbytes) {
    pthread_mutex_lock(&blocks_mutex);
    block *free_one = NULL;
    for (size_t i = 0; i < MOST; i++)
        if (!blocks[i].address)
            free_one = &blocks[i];
    if (!free_one)
        fake_broken("too many blocks of memory");
    *free_one = (block){address, bytes, nbytes};
    pthread_mutex_unlock(&blocks_mutex);
    return address;
}

/* The block that all of this lies in. */
static block inside(const void *start, size_t nbytes, const char *rule) {
    const unsigned char *address = start;
    block found = {0};
    pthread_mutex_lock(&blocks_mutex);
    for (size_t i = 0; i < MOST; i++) {
        const block *it = &blocks[i];
        if (it->address && address >= it->address && nbytes <= it->nbytes && (size_t)(address - it->address) <= it->nbytes - nbytes)
            found = *it;
    }
    pthread_mutex_unlock(&blocks_mutex);
    if (!found.address)
        fake_broken(rule);
    return found;
}

void *fake_allocate_pinned(size_t nbytes) {
    unsigned char *bytes = NULL;
    if (nbytes == 0 || fake_fails("pinned") || posix_memalign((void **)&bytes, PAGE, nbytes) != 0)
        return NULL;
    return add(bytes, bytes, nbytes);
}

void *fake_allocate(size_t nbytes) {
    unsigned char *bytes = NULL;
    if (nbytes == 0 || fake_fails("memory") || posix_memalign((void **)&bytes, PAGE, nbytes) != 0)
        return NULL;
    memset(bytes, 0xee, nbytes);
    void *address = mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED)
        fake_broken("there are no addresses");
    return add(address, bytes, nbytes);
}

void fake_free(void *memory) {
    const block it = inside(memory, 1, "memory is freed that is none");
    if (it.address != memory)
        fake_broken("memory is freed from its middle on");
    pthread_mutex_lock(&blocks_mutex);
    for (size_t i = 0; i < MOST; i++)
        if (blocks[i].address == it.address)
            blocks[i] = (block){0};
    pthread_mutex_unlock(&blocks_mutex);
    if (it.address != it.bytes)
        munmap(it.address, it.nbytes);
    memset(it.bytes, 0xdd, it.nbytes); /* for copies that come too late */
    free(it.bytes);
}

static void make(const copy *it) {
    const block to = inside(it->to, it->nbytes, "a copy ends when the memory of the device is gone");
    inside(it->from, it->nbytes, "a copy ends when its pinned memory is gone");
    memcpy(to.bytes + (it->to - to.address), it->from, it->nbytes);
}

static void *run(void *argument) {
    fake_stream *stream = argument;
    const long delay = setting("FAKE_DELAY_US", 500);
    const struct timespec pause = {delay / 1000000, delay % 1000000 * 1000};
    pthread_mutex_lock(&stream->mutex);
    for (;;) {
        while (!stream->first && !stream->over)
            pthread_cond_wait(&stream->changed, &stream->mutex);
        copy *it = stream->first;
        if (!it)
            break;
        pthread_mutex_unlock(&stream->mutex);
        nanosleep(&pause, NULL);
        if (!it->fails)
            make(it);
        pthread_mutex_lock(&stream->mutex);
        stream->failed |= it->fails;
        stream->first = it->next;
        stream->ended++;
        free(it);
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->mutex);
    return NULL;
}

fake_stream *fake_stream_begin(void) {
    fake_stream *stream = fake_fails("stream") ? NULL : calloc(1, sizeof(*stream));
    if (!stream)
        return NULL;
    pthread_mutex_init(&stream->mutex, NULL);
    pthread_cond_init(&stream->changed, NULL);
    if (pthread_create(&stream->thread, NULL, run, stream) != 0)
        fake_broken("there is no thread");
    fake_object(1);
    return stream;
}

void fake_stream_end(fake_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    stream->over = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->mutex);
    pthread_join(stream->thread, NULL);
    free(stream);
    fake_object(-1);
}

void fake_queue(fake_stream *stream, void *to, const void *from, size_t nbytes) {
    const block pinned = inside(from, nbytes, "a copy from memory that is not pinned");
    const block device = inside(to, nbytes, "a copy to memory that is not the device's");
    if (pinned.bytes != pinned.address || device.bytes == device.address)
        fake_broken("a copy in the wrong direction");
    copy *it = calloc(1, sizeof(*it));
    if (!it)
        fake_broken("there is no memory");
    *it = (copy){NULL, to, from, nbytes, fake_fails("copied")};
    pthread_mutex_lock(&stream->mutex);
    if (stream->first)
        stream->last->next = it;
    else
        stream->first = it;
    stream->last = it;
    stream->queued++;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->mutex);
}

uint64_t fake_queued(fake_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    const uint64_t queued = stream->queued;
    pthread_mutex_unlock(&stream->mutex);
    return queued;
}

uint64_t fake_ended(fake_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    const uint64_t ended = stream->ended;
    pthread_mutex_unlock(&stream->mutex);
    return ended;
}

void fake_wait(fake_stream *stream, uint64_t copies) {
    pthread_mutex_lock(&stream->mutex);
    while (stream->ended < copies)
        pthread_cond_wait(&stream->changed, &stream->mutex);
    pthread_mutex_unlock(&stream->mutex);
}

int fake_has_failed(fake_stream *stream) {
    pthread_mutex_lock(&stream->mutex);
    const int failed = stream->failed;
    pthread_mutex_unlock(&stream->mutex);
    return failed;
}

void fake_copy_out(void *to, const void *from, size_t nbytes) {
    const block it = inside(from, nbytes, "a copy from memory that is not the device's");
    memcpy(to, it.bytes + ((const unsigned char *)from - it.address), nbytes);
}

void fake_object(int difference) {
    pthread_mutex_lock(&blocks_mutex);
    objects += difference;
    pthread_mutex_unlock(&blocks_mutex);
}

__attribute__((destructor)) static void nothing_is_left(void) {
    for (size_t i = 0; i < MOST; i++)
        if (blocks[i].address)
            fake_broken("memory is left");
    if (objects != 0)
        fake_broken("a stream, an event or a session is left");
}
