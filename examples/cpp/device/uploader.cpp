#include "uploader.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace st = safetensors_lazy;

Uploader::~Uploader() {
    try {
        device_.synchronize();
    } catch (const DeviceError &) {
        // Somebody else has been told of that, or of what was before.
    }
}

void Uploader::send(st::Loaded piece, std::byte *tensor) {
    const st::Span<std::byte> bytes = piece.bytes();
    const std::size_t unit = device_.alignment(), request = piece.request();
    std::vector<std::byte> rest = std::move(rests_[request]);
    const std::size_t before = rest.size(), all = before + bytes.size();
    const std::size_t sent = piece.is_last() ? all : all / unit * unit; // so that the next piece begins as it should, too
    std::byte *const to = tensor + piece.offset() - before;

    const std::byte *from = bytes.data();
    Copy copy;
    if (before > 0 || reinterpret_cast<std::uintptr_t>(from) % unit != 0) {
        copy.moved = buffer();
        if (before > 0)
            std::memcpy(copy.moved.get(), rest.data(), before);
        std::memcpy(copy.moved.get() + before, bytes.data(), bytes.size());
        from = copy.moved.get();
        counts_.moved_bytes += bytes.size();
    }
    if (piece.is_last())
        rests_.erase(request);
    else
        rests_[request].assign(from + sent, from + all);
    if (!copy.moved)
        copy.staged = std::move(piece);
    queue(to, from, sent, std::move(copy));
}

void Uploader::hand_back() {
    while (!copies_.empty() && first_end().has_passed())
        drop_first();
}

void Uploader::finish() {
    device_.synchronize();
    while (!copies_.empty())
        drop_first();
}

void Uploader::queue(std::byte *to, const std::byte *from, std::size_t nbytes, Copy copy) {
    copies_.push_back(std::move(copy)); // first, so that nothing goes that the device may be reading
    if (nbytes > 0) {
        device_.copy_in(to, from, nbytes);
        ++counts_.copies;
    }
    copies_.back().end = device_.mark();
    counts_.most_at_once = std::max(counts_.most_at_once, copies_.size());
}

// A buffer for a piece, and for what is left over of the one before. Waits for one if there are as many as there may be.
PinnedMemory Uploader::buffer() {
    if (buffers_.empty() && buffers_made_ < most_buffers) {
        PinnedMemory made = pinned_memory(device_, piece_bytes_ + device_.alignment());
        ++buffers_made_;
        return made;
    }
    while (buffers_.empty()) {
        first_end().wait();
        drop_first();
    }
    PinnedMemory free = std::move(buffers_.back());
    buffers_.pop_back();
    return free;
}

// The end of the first copy. There is none if that could not be queued.
Device::Event &Uploader::first_end() {
    if (copies_.empty() || !copies_.front().end)
        throw DeviceError("an earlier copy has failed");
    return *copies_.front().end;
}

void Uploader::drop_first() {
    if (copies_.front().moved)
        buffers_.push_back(std::move(copies_.front().moved));
    copies_.pop_front(); // and hands back what was staged
}
