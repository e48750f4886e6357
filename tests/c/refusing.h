/* System calls that a filter refuses, as in many a container. */
#ifndef REFUSING_H
#define REFUSING_H

/* Runs a function in a process of its own that has no such call: it fails with os_error. Skips the case where filters are not allowed. */
void refusing_in_child(unsigned number, unsigned os_error, void (*run)(void));

/* For a function that runs in a child: from now on the call fails. Ends the process with 77 where filters are not allowed. */
void refusing(unsigned number, unsigned os_error);

#endif
