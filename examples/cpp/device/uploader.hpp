#ifndef UPLOADER_HPP
#define UPLOADER_HPP

#include <safetensors_lazy.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "device.hpp"

// Sends what a load stages to a device, while the load goes on: staged memory, which has to be pinned for the device, is handed back
// when the device has read it, and no earlier.
//
// A copy has to begin at multiples of the device's alignment on both sides. On the device tensors do; in a file, and so in staged memory,
// they lie where the writer has put them. Those that do not suit are moved to buffers that do, and what is left over of a piece waits
// for the next one.
//
// After an exception it may only be destroyed: pieces are missing then.
class Uploader {
public:
    // piece_bytes: the most bytes that are delivered at once. The device must outlive this.
    Uploader(Device &device, std::size_t piece_bytes) : device_(device), piece_bytes_(piece_bytes) {}
    Uploader(const Uploader &) = delete;
    Uploader &operator=(const Uploader &) = delete;
    // Waits for the copies that are under way.
    ~Uploader();

    // Queues a piece of a tensor, which begins at `tensor` on the device. All pieces have to come, in order. Throws DeviceError.
    void send(safetensors_lazy::Loaded piece, std::byte *tensor);

    // Hands back what the device has read. Throws DeviceError if it could not.
    void hand_back();

    // Whether no copy is under way, and nothing is held.
    bool is_idle() const noexcept { return copies_.empty(); }

    // Waits for all copies. Throws DeviceError if one has failed.
    void finish();

    // How it went: the copies, the bytes of them that had to be moved, and the most that were under way at once.
    struct Counts {
        std::uint64_t copies = 0, moved_bytes = 0;
        std::size_t most_at_once = 0;
    };
    const Counts &counts() const noexcept { return counts_; }

private:
    // A copy that is under way, with what it reads.
    struct Copy {
        std::unique_ptr<Device::Event> end;
        std::optional<safetensors_lazy::Loaded> staged; // or else
        PinnedMemory moved;
    };

    void queue(std::byte *to, const std::byte *from, std::size_t nbytes, Copy copy);
    PinnedMemory buffer();
    Device::Event &first_end();
    void drop_first();

    static constexpr std::size_t most_buffers = 4;

    Device &device_;
    std::size_t piece_bytes_;
    std::deque<Copy> copies_; // in the order of the queue
    std::vector<PinnedMemory> buffers_; // that are free
    std::size_t buffers_made_ = 0;
    std::map<std::size_t, std::vector<std::byte>> rests_; // by request: less than the alignment
    Counts counts_;
};

#endif
