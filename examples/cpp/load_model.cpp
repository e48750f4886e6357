// Loads all of a checkpoint into memory, as fast as the storage gives it: into one block, or through staging memory of a fixed size,
// which is how to load what is larger than memory. Shows how far it is, and in the end what it took. Ctrl-C cancels.

#include <safetensors_lazy.hpp>

#include <chrono>
#include <iomanip>
#include <iostream>
#include <optional>
#include <string>

#include "arguments.hpp"
#include "loading.hpp"
#include "peak_memory.hpp"
#include "watch.hpp"

namespace st = safetensors_lazy;

static const std::string usage = std::string("[option]... model\n") + loading_usage +
                                 "  --staged SIZE       through so much memory, instead of into a block of the size of the model\n"
                                 "  --verify            verify each tensor by the checksums that the files have\n";

struct Job {
    std::string path;
    st::LoadOptions options;
    bool is_staged = false;
    st::OpenOptions open;
};

static Job parse(int argc, char **argv) {
    Job job;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
        if (word == "--staged") {
            job.is_staged = true;
            job.options.staging = static_cast<std::size_t>(size_of(word, value));
            ++i;
        } else if (word == "--verify") {
            job.open.verify = ST_VERIFY_FIRST_USE;
        } else if (take_load_option(word, value, job.options)) {
            ++i;
        } else if (word.substr(0, 1) != "-" && job.path.empty()) {
            job.path = word;
        } else {
            refuse_argument(word);
        }
    }
    if (job.path.empty())
        throw ArgumentError("no model is given");
    return job;
}

// Waits for everything. Gives the number of tensors that have not arrived.
static std::size_t finish(const st::Load &load, std::size_t tensors) {
    const Watch watch(load, "loading");
    Outcomes outcomes(tensors);
    while (const std::optional<st::Loaded> loaded = load.next()) // staged memory is handed back with it
        outcomes.take(*loaded);
    return outcomes.failed();
}

static int run(const Job &job) {
    const st::Checkpoint model(job.path, job.open);
    const auto start = std::chrono::steady_clock::now();
    std::optional<st::Weights> weights;
    if (!job.is_staged)
        weights.emplace(model); // where each tensor has its place before it is read
    const st::Load load = weights ? weights->load(job.options) : model.load(model, job.options);
    const std::size_t failed = finish(load, model.size());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

    const double MB = 1e6;
    const st_progress progress = load.progress();
    std::cout << model.size() - failed << " of " << model.size() << " tensors from " << model.shards() << " file(s)\n"
              << speed_of(progress, seconds.count()) << '\n'
              << std::fixed << std::setprecision(2) << progress.bytes_read / MB << " MB read, peak memory "
              << peak_memory() / MB << " MB\n";
    return failed > 0;
}

int main(int argc, char **argv) {
    answer_help(argc, argv, usage);
    try {
        return run(parse(argc, argv));
    } catch (const st::Error &error) {
        std::cerr << error.status_name() << ": " << error.what() << '\n';
        return 1;
    } catch (const ArgumentError &error) {
        return refuse_arguments(error, argv, usage);
    }
}
