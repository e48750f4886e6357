#include "standard_headers.hpp"

#include "everything.hpp"
