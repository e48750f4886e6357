// Argument-dependent lookup finds functions of std, of the global namespace, and of the host's own types. Each name that the header
// calls is a function there, which takes anything and is deleted: a call that is not qualified finds it, and does not compile.
//
// host_names.hpp is made by header.cmake. (Nobody may declare functions in std; hosts have those that the standard library declares, in
// its next version.)
#include "standard_headers.hpp"

#include <sys/mman.h>

#include "host_names.hpp"

#include "everything.hpp"
