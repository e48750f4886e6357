#ifndef HOST_HPP
#define HOST_HPP

#include "device.hpp"

// Stands for a device where there is none: its memory is that of this machine, and a copy has ended when it is queued.
std::unique_ptr<Device> make_host();

#endif
