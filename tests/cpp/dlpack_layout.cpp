#include "../c/dlpack_layout.c"
