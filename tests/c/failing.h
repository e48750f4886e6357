/*
 * Memory that runs out when a test wants it to: the n-th allocation of 1 KiB or more fails, and
 * the test goes through every n.
 *
 * Allocations are malloc and its kin, mmap, and threads, whose stacks are memory. The program must
 * export its symbols, so that the shared library calls what is defined here (see CMakeLists.txt).
 */
#ifndef FAILING_H
#define FAILING_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Smaller ones are not counted: a size that a file or a caller chooses grows beyond this, that of
 * a message or of a thread's name does not.
 */
enum { FAILING_FROM = 1024 };

/*
 * From now on the n-th allocation fails, counted from 1, and with from_then_on all that follow it.
 * 0: all work.
 */
void failing_start(long n, bool from_then_on);

/* From now on all allocations work. Gives whether one has failed since failing_start. */
bool failing_stop(void);

bool failing_has_failed(void);

/*
 * Skips the case where malloc cannot be replaced: under valgrind and sanitizers, and without
 * glibc.
 */
void failing_needs_malloc(void);

/*
 * Runs a function, in a child process each time, while the first allocation fails, then the
 * second, and so on until it needs no more of them; then the same with all allocations from the
 * n-th on failing. It must not end by a signal. (A hang ends by one.)
 *
 * run starts and stops the failures, and returns whether one has happened.
 */
void failing_each(bool (*run)(long n, bool from_then_on));

#endif
