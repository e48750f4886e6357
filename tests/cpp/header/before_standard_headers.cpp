#include "everything.hpp"

#include "standard_headers.hpp"
