#define _GNU_SOURCE

#include "test.h"

#include <dirent.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { UNTOUCHED = 0x5a };

_Thread_local st_error err;
static jmp_buf skipped;

static size_t count(const char *name, char *const *names, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += strcmp(name, names[i]) == 0;
    return n;
}

/* 0 if the names are those of the cases, each once; otherwise 1, and a line for each difference. */
static int compare_names(char *const *names, size_t names_len, const test_case *cases, size_t len) {
    size_t differences = 0;
    for (size_t i = 0; i < len; i++) {
        size_t registered = count(cases[i].name, names, names_len);
        if (registered == 1)
            continue;
        fprintf(stderr, "the case %s is registered %zu times\n", cases[i].name, registered);
        differences++;
    }
    for (size_t i = 0; i < names_len; i++) {
        size_t in_table = 0;
        for (size_t k = 0; k < len; k++)
            in_table += strcmp(names[i], cases[k].name) == 0;
        if (in_table == 1)
            continue;
        fprintf(stderr, "the registered case %s is %zu times in the table\n", names[i], in_table);
        differences++;
    }
    printf("%zu cases in the table, %zu registered\n", len, names_len);
    return differences != 0;
}

int test_main(int argc, char **argv, const test_case *cases, size_t len) {
    const char *wanted = argc > 1 ? argv[1] : NULL;
    if (wanted && strcmp(wanted, "--list") == 0) {
        for (size_t k = 0; k < len; k++)
            printf("%s\n", cases[k].name);
        return 0;
    }
    if (wanted && strcmp(wanted, "--registered") == 0)
        return compare_names(argv + 2, (size_t)argc - 2, cases, len);
    volatile size_t ran = 0, passed = 0;
    /* Outlives the longjmp of a skip. */
    static size_t i;
    for (i = 0; i < len; i++) {
        if (wanted && strcmp(wanted, cases[i].name) != 0)
            continue;
        ran++;
        if (setjmp(skipped) == 0) {
            cases[i].run();
            passed++;
            printf("%-60s ok\n", cases[i].name);
        } else {
            printf("%-60s skipped\n", cases[i].name);
        }
        fflush(stdout);
    }
    if (ran == 0) {
        fprintf(stderr, "there is no case %s\n", wanted ? wanted : "at all");
        return 2;
    }
    return passed > 0 ? 0 : 77;
}

void test_fail(const char *file, int line, const char *expression) {
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s\n", file, line, expression);
    if (memchr(err.message, 0, sizeof(err.message)) && err.message[0] && err.message[0] != UNTOUCHED)
        fprintf(stderr, "    the last error: %d %s (errno %d): %s\n", (int)err.status, st_status_name(err.status),
                (int)err.os_error, err.message);
    exit(1);
}

void test_skip(const char *reason) {
    printf("    %s\n", reason);
    longjmp(skipped, 1);
}

void test_before(void) {
    memset(&err, UNTOUCHED, sizeof(err));
}

static void fail_status(const char *file, int line, const char *call, st_status got, st_status want) {
    const char *got_name = st_status_name(got), *want_name = st_status_name(want);
    fprintf(stderr, "%s returned %d %s, not %s\n", call, (int)got, got_name ? got_name : "?", want_name);
    test_fail(file, line, call);
}

void test_after(const char *file, int line, const char *call, st_status got, st_status want) {
    st_error untouched;
    memset(&untouched, UNTOUCHED, sizeof(untouched));
    if (got != want)
        fail_status(file, line, call, got, want);
    if (want == ST_OK) {
        if (memcmp(&err, &untouched, sizeof(err)) != 0)
            test_fail(file, line, "err is written only on failure");
        return;
    }
    const char *end = memchr(err.message, 0, sizeof(err.message));
    if (!end || end == err.message || !test_is_one_line(err.message, (size_t)(end - err.message)))
        test_fail(file, line, "err.message is one line of UTF-8");
    if (err.status != want)
        test_fail(file, line, "err.status is what the call returned");
    if ((err.os_error != 0) != (want == ST_ERR_IO) && want != ST_ERR_NO_MEMORY)
        test_fail(file, line, "err.os_error is set where the system refused");
}

void test_says(const char *file, int line, const char *fragment) {
    if (!strstr(err.message, fragment)) {
        fprintf(stderr, "the message lacks: %s\n", fragment);
        test_fail(file, line, "SAYS");
    }
}

/* The length of the character that starts here; 0 if it is not UTF-8 or a control character. */
static size_t character(const unsigned char *s, size_t len) {
    size_t more = s[0] < 0x80 ? 0 : s[0] >= 0xc2 && s[0] < 0xe0 ? 1 : s[0] >= 0xe0 && s[0] < 0xf0 ? 2 : s[0] < 0xf5 ? 3 : 9;
    if (s[0] < 0x20 || s[0] == 0x7f || (s[0] >= 0x80 && s[0] < 0xc2) || more >= len)
        return 0;
    for (size_t i = 1; i <= more; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] >= 0xa0;
    bool control = s[0] == 0xc2 && s[1] < 0xa0;
    bool separator = s[0] == 0xe2 && s[1] == 0x80 && (s[2] == 0xa8 || s[2] == 0xa9);
    return overlong || surrogate || control || separator || (s[0] == 0xf4 && s[1] >= 0x90) ? 0 : more + 1;
}

bool test_is_one_line(const char *text, size_t len) {
    const unsigned char *at = (const unsigned char *)text, *end = at + len;
    while (at < end) {
        size_t n = character(at, (size_t)(end - at));
        if (n == 0)
            return false;
        at += n;
    }
    return true;
}

const char *test_setting(const char *name) {
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

bool test_is_instrumented(void) {
    return test_setting("ST_TEST_INSTRUMENTED") != NULL;
}

void test_forks_beside_threads(void) {
#ifdef __SANITIZE_ADDRESS__
    SKIP("the child may find AddressSanitizer's malloc locked");
#endif
}

bool test_is_emulated(void) {
    return test_setting("ST_TEST_RUNNER") != NULL;
}

int test_in_child(void (*run)(void)) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGBUS, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        run();
        fflush(NULL);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

void test_end_child(void) {
    fflush(NULL);
    /* valgrind looks for leaks also after _exit, but not in what another program takes the place of. */
    if (test_is_instrumented())
        execl("/bin/true", "true", (char *)NULL);
    _exit(test_is_instrumented());
}

void test_become_nobody(void) {
    if (geteuid() != 0)
        return;
    CHECK(setgroups(0, NULL) == 0);
    CHECK(setgid(65534) == 0);
    CHECK(setuid(65534) == 0);
}

size_t test_entries(const char *folder) {
    DIR *dir = opendir(folder);
    CHECK(dir);
    size_t n = 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

void test_threads_end(size_t before) {
    for (int i = 0; i < 12000 && test_entries("/proc/self/task") != before; i++)
        usleep(10000);
    CHECK(test_entries("/proc/self/task") == before);
}
