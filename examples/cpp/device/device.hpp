#ifndef DEVICE_HPP
#define DEVICE_HPP

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

// What every function here throws when it fails.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A device with memory of its own, and one queue of copies to it. For the thread that has made it: runtimes keep the device of each.
class Device {
public:
    // A place in the queue, which passes when all copies before it have ended.
    class Event {
    public:
        Event() = default;
        Event(const Event &) = delete;
        Event &operator=(const Event &) = delete;
        virtual ~Event() = default;
        virtual bool has_passed() = 0;
        virtual void wait() = 0;
    };

    Device() = default;
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    virtual ~Device() = default; // everything that came from it has to be gone

    virtual std::string name() const = 0;
    // A power of two: what both addresses of a copy in the queue must be multiples of.
    virtual std::size_t alignment() const noexcept { return 1; }

    // Memory of this machine that the device reads by itself while the processor does something else.
    virtual void *allocate_pinned(std::size_t nbytes) = 0;
    virtual void free_pinned(void *memory) noexcept = 0;

    // Memory of the device, aligned to 64 at least.
    virtual void *allocate(std::size_t nbytes) = 0;
    virtual void free(void *memory) noexcept = 0;

    // Queues a copy of pinned memory to memory of the device, and returns. The bytes must stay as they are until the copy has ended.
    virtual void copy_in(void *to, const void *pinned, std::size_t nbytes) = 0;
    virtual std::unique_ptr<Event> mark() = 0;
    // Waits for all copies. Throws if one has failed: an event may pass all the same.
    virtual void synchronize() = 0;

    // Copies memory of the device to any memory of this machine, and waits.
    virtual void copy_out(void *to, const void *from, std::size_t nbytes) = 0;
};

// Makes the device of a name: "host"; "cuda" or "acl", or one of several: "cuda:1"; "auto" for the first of CUDA and ACL that works, or
// else the host. runtime: the library to use; "" to look for it. Throws DeviceError if it cannot be used, and ArgumentError for any
// other name.
std::unique_ptr<Device> make_device(const std::string &name, const std::string &runtime);

// Memory of a device, or pinned for it, which must go before the device.
template <void (Device::*Free)(void *) noexcept> struct FreeBy {
    Device *device = nullptr;
    void operator()(std::byte *memory) const noexcept { (device->*Free)(memory); }
};
using PinnedMemory = std::unique_ptr<std::byte, FreeBy<&Device::free_pinned>>;
using DeviceMemory = std::unique_ptr<std::byte, FreeBy<&Device::free>>;

inline PinnedMemory pinned_memory(Device &device, std::size_t nbytes) {
    return PinnedMemory(static_cast<std::byte *>(device.allocate_pinned(nbytes)), {&device});
}
inline DeviceMemory device_memory(Device &device, std::size_t nbytes) {
    return DeviceMemory(static_cast<std::byte *>(device.allocate(nbytes)), {&device});
}

#endif
