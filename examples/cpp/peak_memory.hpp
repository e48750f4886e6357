#ifndef PEAK_MEMORY_HPP
#define PEAK_MEMORY_HPP

#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

// The most memory that this process ever had, in bytes; 0 if the system does not tell.
inline std::uint64_t peak_memory() {
    std::ifstream status("/proc/self/status");
    std::uint64_t kibibytes = 0;
    for (std::string key; status >> key && key != "VmHWM:";)
        status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    status >> kibibytes;
    return kibibytes * 1024;
}

#endif
