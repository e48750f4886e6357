#define _GNU_SOURCE

#include "refusing.h"
#include "test.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_ALLOWED = 77 };

void refusing(unsigned number, unsigned os_error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | os_error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {LEN(filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(NOT_ALLOWED);
}

static unsigned refused_number, refused_error;
static void (*run_refused)(void);

static void refuse_and_run(void) {
    refusing(refused_number, refused_error);
    run_refused();
}

void refusing_in_child(unsigned number, unsigned os_error, void (*run)(void)) {
    refused_number = number;
    refused_error = os_error;
    run_refused = run;
    const int status = test_in_child(refuse_and_run);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_ALLOWED)
        SKIP("filters of system calls are not allowed here");
    if (status != 0)
        fprintf(stderr, "system call %u fails with %u\n", number, os_error);
    CHECK(status == 0);
}
