#ifndef CUDA_HPP
#define CUDA_HPP

#include "device.hpp"

// An NVIDIA GPU, by the CUDA runtime 11 or later. runtime: its path, or "" to look for it.
std::unique_ptr<Device> make_cuda(int number, const std::string &runtime);

#endif
