#include "../c/layout.c"
