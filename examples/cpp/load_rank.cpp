// Loads what one rank has of a model, a single file or sharded, in place: of each tensor its rows, and of tensors with fewer rows than
// there are ranks all. A budget bounds what is held in memory. Prints what that took, and ends with 1 if it was more than the limit.

#include <safetensors_lazy.hpp>

#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "peak_memory.hpp"

namespace st = safetensors_lazy;

// Stands for the memory of a device.
class Device {
public:
    void write(st::Span<const std::byte> bytes) {
        for (std::byte byte : bytes) // FNV-1a
            checksum_ = (checksum_ ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
        written_ += bytes.size();
    }
    std::uint64_t written() const { return written_; }
    std::uint64_t checksum() const { return checksum_; }

private:
    std::uint64_t written_ = 0, checksum_ = 0xcbf29ce484222325;
};

// The way for parts that cannot be used in place: at once if the buffer holds them, otherwise one half after the other.
static void upload_by_buffer(const st::Slice &part, std::vector<std::byte> &buffer, Device &device) {
    if (part.nbytes() <= buffer.size()) {
        part.read(buffer.data(), buffer.size());
        device.write({buffer.data(), part.nbytes()});
        return;
    }
    st::Ranges first = part.ranges(), second = part.ranges();
    std::size_t d = 0;
    while (part.shape()[d] < 2) // rows, or else columns of the row that is left
        ++d;
    first[d].stop = second[d].start = first[d].start + part.shape()[d] / 2;
    upload_by_buffer(part.tensor().slice(first), buffer, device);
    upload_by_buffer(part.tensor().slice(second), buffer, device);
}

static void load(const st::Checkpoint &model, std::uint32_t rank, std::uint32_t world, std::size_t buffer_size, Device &device) {
    const bool is_mapped = model.info().storage == ST_STORAGE_MMAP;
    const std::uint64_t budget = model.residency().budget;
    std::vector<std::byte> buffer;
    for (st::Tensor tensor : model) {
        // The system reads ahead meanwhile. (All of a tensor: the other ranks of this machine need the rest of it.)
        if (const std::size_t next[] = {tensor.index() + 1}; next[0] < model.size())
            model.prefetch(next);

        const bool is_split = tensor.rank() > 0 && tensor.shape()[0] >= world;
        const st::Slice part = is_split ? tensor.shard(0, rank, world) : tensor.slice();
        if (is_mapped && tensor.nbytes() <= budget) {
            const st::Pin pin = tensor.pin();
            device.write(pin.view(part.ranges()).bytes());
        } else {
            buffer.resize(buffer_size);
            upload_by_buffer(part, buffer, device);
        }
    }
}

static const char usage[] = "model rank world [MiB]\n";

int main(int argc, char **argv) {
    answer_help(argc, argv, usage);
    try {
        for (int i = 1; i < argc; ++i)
            if (argv[i][0] == '-' || i > 4)
                refuse_argument(argv[i]);
        if (argc < 4)
            throw ArgumentError("model, rank and world are needed");
        const std::uint32_t rank = number_of("rank", argv[2], 0), world = number_of("world", argv[3], 1);
        const std::uint64_t limit = std::uint64_t(argc > 4 ? number_of("MiB", argv[4], 1) : 512) << 20;
        st::OpenOptions options;
        options.budget = limit / 4 * 3; // the rest is for the buffer and the program itself
        const st::Checkpoint model(argv[1], options);
        Device device;
        load(model, rank, world, limit / 8, device);

        const double MB = 1e6;
        const std::uint64_t peak = peak_memory();
        const st_residency_info held = model.residency();
        std::cout << std::fixed << std::setprecision(2) << "rank " << rank << " of " << world << ": " << model.size() << " tensors, "
                  << device.written() / MB << " MB needed, checksum " << std::hex << device.checksum() << std::dec << '\n'
                  << "tensors held: " << held.charged_bytes / MB << " MB of a budget of " << held.budget / MB << " MB, "
                  << held.misses << " pinned, " << held.evictions << " evicted\n"
                  << "peak memory " << peak / MB << " MB of " << limit / MB << " MB\n";
        if (peak > limit)
            std::cerr << "more memory was used than the limit allows\n";
        return peak > limit;
    } catch (const st::Error &error) {
        std::cerr << error.status_name() << ": " << error.what() << '\n';
        return 1;
    } catch (const ArgumentError &error) {
        return refuse_arguments(error, argv, usage);
    }
}
