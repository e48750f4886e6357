#ifndef ARGUMENTS_HPP
#define ARGUMENTS_HPP

// What the programs do with their command lines: --help is answered on stdout, with 0; what is wrong is named on stderr, with 2.

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>

// The command line is wrong.
struct ArgumentError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

[[noreturn]] inline void refuse_argument(const std::string &word) {
    throw ArgumentError((word.substr(0, 1) == "-" ? "unknown option '" : "unexpected argument '") + word + "'");
}

// Prints the usage and ends the program, if that is all that was asked for.
inline void answer_help(int argc, char **argv, const std::string &usage) {
    for (int i = 1; i < argc; ++i)
        if (std::string(argv[i]) == "--help") {
            std::cout << "usage: " << argv[0] << ' ' << usage;
            std::exit(EXIT_SUCCESS);
        }
}

// Says what is wrong, and gives the exit status.
inline int refuse_arguments(const ArgumentError &error, char **argv, const std::string &usage) {
    std::cerr << argv[0] << ": " << error.what() << "\nusage: " << argv[0] << ' ' << usage;
    return 2;
}

// The digits at the start of a text, as a number of at most that size; `end` is where they end. Gives false if there are none.
inline bool leading_number(const std::string &text, std::uint64_t most, std::uint64_t &number, std::size_t &end) {
    number = 0;
    for (end = 0; end < text.size() && text[end] >= '0' && text[end] <= '9'; ++end) {
        const auto digit = static_cast<std::uint64_t>(text[end] - '0');
        if (number > (most - digit) / 10)
            return false;
        number = number * 10 + digit;
    }
    return end > 0;
}

// A whole number. `name` is the option or argument that it is for.
inline std::uint32_t number_of(const std::string &name, const std::string &text, std::uint32_t least) {
    std::uint64_t number = 0;
    std::size_t end = 0;
    if (!leading_number(text, UINT32_MAX, number, end) || end < text.size() || number < least)
        throw ArgumentError(name + " must be a whole number from " + std::to_string(least) + ", not '" + text + "'");
    return static_cast<std::uint32_t>(number);
}

// A number of bytes, with a unit as those of Hugging Face: KB is 1000 bytes, KiB is 1024.
inline std::uint64_t size_of(const std::string &name, const std::string &text) {
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
    std::uint64_t number = 0;
    std::size_t digits = 0;
    if (leading_number(text, UINT64_MAX, number, digits))
        for (const auto &unit : units)
            if (text.substr(digits) == unit.name && number > 0 && number <= UINT64_MAX / unit.bytes)
                return number * unit.bytes;
    throw ArgumentError(name + " must be a size such as 5GB, 500MiB or 1000000, not '" + text + "'");
}

#endif
