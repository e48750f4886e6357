/*
 * A device for tests, behind fake runtimes: its memory cannot be touched from outside, and its copies read their bytes when they end,
 * which is some time after they were queued. What breaks its rules is told on stderr, and ends the program; so does what is left at
 * its end.
 *
 * FAKE_DELAY_US      how long each copy takes (default: 500)
 * FAKE_FAILS=WHAT@N  the N-th of these fails: cuda_init, acl_init, stream, pinned, memory, event, copy (which is not taken), copied
 *                    (which goes wrong later)
 * FAKE_DEVICES       how many there are (default: 1)
 */
#ifndef FAKE_DEVICE_H
#define FAKE_DEVICE_H

#include <stddef.h>
#include <stdint.h>

int fake_devices(void);

/* Whether this call is to fail. */
int fake_fails(const char *what);

/* Memory, or NULL. */
void *fake_allocate(size_t nbytes);
void *fake_allocate_pinned(size_t nbytes);
void fake_free(void *memory);

typedef struct fake_stream fake_stream;
fake_stream *fake_stream_begin(void);
void fake_stream_end(fake_stream *stream);

/* Queues a copy from pinned memory to the device. */
void fake_queue(fake_stream *stream, void *to, const void *from, size_t nbytes);

/* The number of copies that were queued, and how many of them have ended. */
uint64_t fake_queued(fake_stream *stream);
uint64_t fake_ended(fake_stream *stream);

/* Waits until so many have ended. */
void fake_wait(fake_stream *stream, uint64_t copies);

/* Whether one of those that have ended has failed. */
int fake_has_failed(fake_stream *stream);

/* Copies to memory that is none of the device's, at once. */
void fake_copy_out(void *to, const void *from, size_t nbytes);

/* Counts objects that have to be gone in the end. */
void fake_object(int difference);

/* Ends the program. */
void fake_broken(const char *rule);

#endif
