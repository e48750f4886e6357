// The headers that the library's own includes come first: they are not to be tested.
#include "standard_headers.hpp"

#include <sys/mman.h>

#include "host_macros.h"

#include "everything.hpp"
