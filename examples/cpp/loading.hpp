#ifndef LOADING_HPP
#define LOADING_HPP

// What programs that load have in common: the options that say how, and the line that says how it went.

#include <safetensors_lazy.hpp>

#include <iomanip>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

#include "../common/engines.h"
#include "arguments.hpp"

inline const char loading_usage[] =
    "  --engine NAME       auto, buffered (through the page cache), direct, uring (around it); default: auto\n"
    "  --workers N         threads that read\n"
    "  --depth N           reads that are under way at once around the page cache\n"
    "  --block SIZE        the most bytes of one read: a multiple of 4096 from 64KiB to 64MiB\n";

// Takes a word of the command line with the one after it, if it is an option of loading. Throws ArgumentError if the value is
// wrong.
inline bool take_load_option(const std::string &word, const std::string &value, safetensors_lazy::LoadOptions &options) {
    std::int32_t engine = ST_ENGINE_AUTO;
    if (word == "--engine" && engine_find(value.c_str(), &engine))
        options.engine = safetensors_lazy::Engine(engine);
    else if (word == "--engine")
        throw ArgumentError("--engine must be auto, memory, buffered, direct or uring, not '" + value + "'");
    else if (word == "--workers")
        options.workers = number_of(word, value, 1);
    else if (word == "--depth")
        options.queue_depth = number_of(word, value, 1);
    else if (word == "--block")
        options.block_bytes = size_of(word, value);
    else
        return false;
    return true;
}

// How fast it was: "90.87 MB in 0.05 s, 1.82 GB/s, by uring, 4 thread(s)".
inline std::string speed_of(const st_progress &progress, double seconds) {
    char engines[ENGINE_NAMES] = "none";
    if (progress.engines)
        engine_names(progress.engines, engines);
    const auto bytes = static_cast<double>(progress.bytes_done);
    std::ostringstream text;
    text << std::fixed << std::setprecision(2) << bytes / 1e6 << " MB in " << seconds << " s, "
         << (seconds > 0 ? bytes / seconds / 1e9 : 0) << " GB/s, by " << engines << ", " << progress.workers << " thread(s)";
    return text.str();
}

// What becomes of requests. Their pieces fail one by one, so that it takes all of them to make one that has arrived.
class Outcomes {
public:
    explicit Outcomes(std::size_t requests) : is_good_(requests, true) {}

    // Takes a request, or a piece of one. Gives whether it and all pieces before it have arrived; tells why the first has not.
    bool take(const safetensors_lazy::Loaded &loaded) {
        if (!loaded && is_good_[loaded.request()]) {
            is_good_[loaded.request()] = false;
            ++failed_;
            if (isatty(STDERR_FILENO))
                std::cerr << "\r\033[K"; // over the line that shows how far it is
            std::cerr << st_status_name(loaded.status()) << ": " << loaded.message() << '\n';
        }
        return is_good_[loaded.request()];
    }

    bool is_good(std::size_t request) const { return is_good_[request]; }
    std::size_t failed() const { return failed_; }

private:
    std::vector<bool> is_good_;
    std::size_t failed_ = 0;
};

#endif
