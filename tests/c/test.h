/*
 * A small harness: a program is a table of cases, one CASE a line. `c_open missing_file` runs one, `c_open` all of them, and
 * `c_open --list` prints their names. `c_open --registered NAME...` fails unless these are the names in the table, each once:
 * CMake passes the names that it registered.
 *
 * A check that fails prints where, what and the last st_error, and ends the program with 1; SKIP ends the case, and the program
 * with 77 if no other case ran.
 */
#ifndef TEST_H
#define TEST_H

#include <safetensors_lazy.h>

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#else
/* Where OK and FAILS expect the errors of their calls: one per thread. */
extern _Thread_local st_error err;
#endif

typedef struct test_case {
    const char *name;
    void (*run)(void);
} test_case;

#define CASE(function) { #function, function }

#define TEST_MAIN(cases) \
    int main(int argc, char **argv) { return test_main(argc, argv, cases, sizeof(cases) / sizeof((cases)[0])); }

#define CHECK(condition) ((condition) ? (void)0 : test_fail(__FILE__, __LINE__, #condition))

/* A call whose last argument is &err: it must return ST_OK and leave err alone. */
#define OK(call) (test_before(), test_after(__FILE__, __LINE__, #call, (call), ST_OK))

/* A call whose last argument is &err: it must return this status, and fill err with one line of UTF-8. */
#define FAILS(status, call) (test_before(), test_after(__FILE__, __LINE__, #call, (call), (status)))

/* The message of the last call must contain this. */
#define SAYS(fragment) test_says(__FILE__, __LINE__, (fragment))

#define SKIP(reason) test_skip(reason)

#define LEN(array) (sizeof(array) / sizeof((array)[0]))

int test_main(int argc, char **argv, const test_case *cases, size_t len);

#ifdef __GNUC__
__attribute__((noreturn))
#endif
void test_fail(const char *file, int line, const char *expression);
void test_skip(const char *reason);
void test_before(void);
void test_after(const char *file, int line, const char *call, st_status got, st_status want);
void test_says(const char *file, int line, const char *fragment);

/* Whether text of len bytes is UTF-8 without control characters. */
bool test_is_one_line(const char *text, size_t len);

/* Under valgrind or a sanitizer: fewer rounds, and none of the cases that limit memory or raise signals. */
bool test_is_instrumented(void);

/* Skips a case that forks while other threads run, under AddressSanitizer: one of them may hold a lock of its malloc, for ever in the child. */
void test_forks_beside_threads(void);

/* Under qemu's emulation of programs, which takes MADV_WIPEONFORK and does not wipe, and cancels no thread asynchronously. */
bool test_is_emulated(void);

/* The number of entries of a folder, such as /proc/self/fd. */
size_t test_entries(const char *folder);

/* Waits until there are as many threads as before: the system lists one that has ended for a moment longer. */
void test_threads_end(size_t before);

/* What ctest set for this name; NULL if nothing. */
const char *test_setting(const char *name);

/* Runs a function in a process of its own. Gives its wait status: 0 if all its checks passed. */
int test_in_child(void (*run)(void));

/*
 * Ends a child that was forked while other threads of the parent were at work, with 0. What those had in their hands is nobody's
 * there, and looks like a leak: see it go unsearched.
 */
#ifdef __GNUC__
__attribute__((noreturn))
#endif
void test_end_child(void);

/* Gives up the rights of root, in a child process. */
void test_become_nobody(void);

#ifdef __cplusplus
}
#endif

#endif
