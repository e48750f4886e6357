#ifndef SIZE_OF_HPP
#define SIZE_OF_HPP

#include <cstdint>
#include <stdexcept>
#include <string>

// A number of bytes, with a unit as those of Hugging Face: KB is 1000 bytes, KiB is 1024. Throws std::invalid_argument.
inline std::uint64_t size_of(const std::string &text) {
    static const struct {
        const char *name;
        std::uint64_t bytes;
    } units[] = {{"", 1},
                 {"KB", 1000},
                 {"MB", 1000 * 1000},
                 {"GB", 1000 * 1000 * 1000},
                 {"KiB", 1 << 10},
                 {"MiB", 1 << 20},
                 {"GiB", 1 << 30}};
    std::size_t digits = 0;
    if (text.empty() || text[0] < '0' || text[0] > '9')
        throw std::invalid_argument(text);
    const std::uint64_t number = std::stoull(text, &digits);
    for (const auto &unit : units)
        if (text.substr(digits) == unit.name && number > 0 && number <= UINT64_MAX / unit.bytes)
            return number * unit.bytes;
    throw std::invalid_argument(text);
}

#endif
