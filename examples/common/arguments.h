/* What the programs in C do with their command lines: --help is answered on stdout, with 0; what is wrong is named on stderr, with 2. */

#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <stdio.h>
#include <string.h>

/* Prints the usage if it is asked for. Returns whether it is. */
static inline int answer_help(int argc, char **argv, const char *usage) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) {
            printf("usage: %s %s", argv[0], usage);
            return 1;
        }
    return 0;
}

/* Says what is wrong, and about which word if it is about one (or NULL). Returns the exit status. */
static inline int refuse_arguments(char **argv, const char *usage, const char *what, const char *word) {
    if (word)
        fprintf(stderr, "%s: %s '%s'\n", argv[0], what, word);
    else
        fprintf(stderr, "%s: %s\n", argv[0], what);
    fprintf(stderr, "usage: %s %s", argv[0], usage);
    return 2;
}

/* The same, of a word that the program has no use for. */
static inline int refuse_argument(char **argv, const char *usage, const char *word) {
    return refuse_arguments(argv, usage, word[0] == '-' ? "unknown option" : "unexpected argument", word);
}

#endif
