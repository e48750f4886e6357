/* The header of C, where <windows.h>, X11 and others were included before it. */
#include <stddef.h>
#include <stdint.h>

#include "host_macros.h"

#include <safetensors_lazy.h>

extern const size_t uses_the_header;
const size_t uses_the_header = sizeof(st_open_options) + sizeof(st_tensor) + sizeof(st_view) + sizeof(st_error);
