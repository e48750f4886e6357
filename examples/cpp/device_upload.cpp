// Loads all of a checkpoint to a device, in bounded memory: the storage fills one part of a ring of pinned memory while the device
// reads another. Shows how far it is, and in the end what it took. Ctrl-C cancels.

#include <safetensors_lazy.hpp>

#include <chrono>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"
#include "device/device.hpp"
#include "device/uploader.hpp"
#include "loading.hpp"
#include "peak_memory.hpp"
#include "watch.hpp"

namespace st = safetensors_lazy;

static const std::string usage =
    std::string("[option]... model\n") +
    "  --device NAME       host, cuda, acl, or one of several: cuda:1; default: auto, which takes a CUDA or ACL that works\n"
    "  --runtime FILE      the runtime library of that device, where it is not found by itself\n"
    "  --staging SIZE      the pinned memory that the storage fills and the device reads; default: 64MiB\n"
    "  --piece SIZE        the most bytes of one copy; default: 8MiB\n"
    "  --check             compare what is on the device with the files\n"
    "  --verify            verify each tensor by the checksums that the files have\n" +
    loading_usage;

struct Job {
    std::string path, device = "auto", runtime;
    std::size_t staging_bytes = 64 << 20;
    bool check = false;
    st::OpenOptions open;
    st::LoadOptions load;

    Job() { load.piece_bytes = 8 << 20; }
};

static Job parse(int argc, char **argv) {
    Job job;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
        if (word == "--check") {
            job.check = true;
            continue;
        }
        if (word == "--verify") {
            job.open.verify = ST_VERIFY_FIRST_USE;
            continue;
        }
        if (word.substr(0, 1) != "-" && job.path.empty()) {
            job.path = word;
            continue;
        }
        ++i;
        if (word == "--device")
            job.device = value;
        else if (word == "--runtime" && !value.empty())
            job.runtime = value;
        else if (word == "--runtime")
            throw ArgumentError("--runtime needs a file");
        else if (word == "--staging")
            job.staging_bytes = static_cast<std::size_t>(size_of(word, value));
        else if (word == "--piece")
            job.load.piece_bytes = static_cast<std::size_t>(size_of(word, value));
        else if (!take_load_option(word, value, job.load))
            refuse_argument(word);
    }
    if (job.path.empty())
        throw ArgumentError("no model is given");
    return job;
}

// A checkpoint in memory of a device: one block, in which tensors lie as kernels want them.
class Resident {
public:
    Resident(Device &device, const st::Checkpoint &model) {
        // 512 bytes suit what reads in lines or wide vectors. ACL wants 32 bytes behind each tensor, which it may read.
        std::size_t end = 0;
        for (const st::Tensor tensor : model) {
            offsets_.push_back(end);
            end += (tensor.nbytes() + 32 + 511) / 512 * 512;
        }
        memory_ = device_memory(device, end + 1); // not 0
    }

    std::byte *at(const st::Tensor &tensor) const { return memory_.get() + offsets_[tensor.index()]; }

private:
    std::vector<std::size_t> offsets_;
    DeviceMemory memory_;
};

// Lets tensors go to their places as they arrive.
static Outcomes upload(const st::Load &load, Uploader &uploader, const Resident &resident, std::size_t tensors) {
    Outcomes outcomes(tensors);
    while (!load.is_done()) {
        uploader.hand_back();
        // While copies are under way, their memory is wanted back soon; without any, nothing but the storage is left to wait for.
        std::optional<st::Loaded> piece = uploader.is_idle() ? load.next() : load.next(std::chrono::milliseconds(1));
        if (piece && outcomes.take(*piece) && !piece->bytes().empty()) {
            std::byte *const place = resident.at(piece->tensor());
            uploader.send(std::move(*piece), place);
        }
    }
    uploader.finish();
    return outcomes;
}

// Compares what is on the device with the files. Gives the number of tensors that differ.
static std::size_t compare(Device &device, const Resident &resident, const st::Checkpoint &model, const Outcomes &outcomes,
                           const Watch &watch) {
    std::size_t different = 0;
    std::vector<std::byte> there, here;
    for (const st::Tensor tensor : model) {
        watch.check();
        if (!outcomes.is_good(tensor.index()) || tensor.nbytes() == 0)
            continue;
        there.resize(tensor.nbytes());
        here.resize(tensor.nbytes());
        device.copy_out(there.data(), resident.at(tensor), there.size());
        tensor.read(here.data(), here.size());
        if (std::memcmp(there.data(), here.data(), here.size()) != 0) {
            std::cerr << "tensor " << tensor.index() << " differs on the device\n";
            ++different;
        }
    }
    return different;
}

static void print_summary(const st::Checkpoint &model, const Device &device, const st::Load &load, const Uploader::Counts &counts,
                          const Outcomes &outcomes, double seconds) {
    const double MB = 1e6;
    std::cout << model.size() - outcomes.failed() << " of " << model.size() << " tensors from " << model.shards() << " file(s), to "
              << device.name() << '\n'
              << speed_of(load.progress(), seconds) << '\n'
              << std::fixed << std::setprecision(2) << counts.copies << " copies, at most " << counts.most_at_once << " at once; "
              << static_cast<double>(counts.moved_bytes) / MB << " MB moved to be aligned; peak memory "
              << static_cast<double>(peak_memory()) / MB << " MB\n";
}

static int run(Job job) {
    const st::Checkpoint model(job.path, job.open);
    const std::unique_ptr<Device> device = make_device(job.device, job.runtime);
    const Resident resident(*device, model);
    const PinnedMemory staging = pinned_memory(*device, job.staging_bytes);
    job.load.staging = st::Span<std::byte>(staging.get(), job.staging_bytes);

    const auto start = std::chrono::steady_clock::now();
    const st::Load load = model.load(model, job.load);
    std::optional<Watch> watch(std::in_place, load, "uploading");
    Uploader uploader(*device, job.load.piece_bytes); // goes before the load, when the device has read what it holds of it
    const Outcomes outcomes = upload(load, uploader, resident, model.size());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const std::size_t different = job.check ? compare(*device, resident, model, outcomes, *watch) : 0;
    watch.reset(); // wipes its line

    print_summary(model, *device, load, uploader.counts(), outcomes, seconds.count());
    if (job.check)
        std::cout << (different ? "the device does not have what the files have\n" : "the device has what the files have\n");
    return outcomes.failed() > 0 || different > 0;
}

int main(int argc, char **argv) {
    answer_help(argc, argv, usage);
    watch_prepare();
    try {
        return run(parse(argc, argv));
    } catch (const st::Error &error) {
        std::cerr << error.status_name() << ": " << error.what() << '\n';
        return 1;
    } catch (const DeviceError &error) {
        std::cerr << error.what() << '\n';
        return 1;
    } catch (const ArgumentError &error) {
        return refuse_arguments(error, argv, usage);
    }
}
