#include "cuda.hpp"

#include <array>
#include <utility>

#include "runtime.hpp"

namespace {

// What is used of the runtime's interface, so that its headers are not needed.
struct Api {
    enum : int { Success = 0, NotReady = 600 };
    enum : int { HostToDevice = 1, DeviceToHost = 2 };
    enum : unsigned { NonBlocking = 1, DisableTiming = 2 };
    using Stream = struct StreamOfCuda *;
    using Event = struct EventOfCuda *;

    explicit Api(const Runtime &runtime) {
        runtime.find(error_string, "cudaGetErrorString");
        runtime.find(device_count, "cudaGetDeviceCount");
        runtime.find(set_device, "cudaSetDevice");
        runtime.find(pci_bus_id, "cudaDeviceGetPCIBusId");
        runtime.find(host_alloc, "cudaHostAlloc");
        runtime.find(free_host, "cudaFreeHost");
        runtime.find(malloc, "cudaMalloc");
        runtime.find(free, "cudaFree");
        runtime.find(memcpy, "cudaMemcpy");
        runtime.find(memcpy_async, "cudaMemcpyAsync");
        runtime.find(stream_create, "cudaStreamCreateWithFlags");
        runtime.find(stream_destroy, "cudaStreamDestroy");
        runtime.find(stream_synchronize, "cudaStreamSynchronize");
        runtime.find(event_create, "cudaEventCreateWithFlags");
        runtime.find(event_destroy, "cudaEventDestroy");
        runtime.find(event_record, "cudaEventRecord");
        runtime.find(event_query, "cudaEventQuery");
        runtime.find(event_synchronize, "cudaEventSynchronize");
    }

    void check(int error, const std::string &call) const {
        if (error != Success)
            throw DeviceError(call + ": " + error_string(error) + " (" + std::to_string(error) + ")");
    }

    const char *(*error_string)(int);
    int (*device_count)(int *);
    int (*set_device)(int);
    int (*pci_bus_id)(char *, int, int);
    int (*host_alloc)(void **, std::size_t, unsigned);
    int (*free_host)(void *);
    int (*malloc)(void **, std::size_t);
    int (*free)(void *);
    int (*memcpy)(void *, const void *, std::size_t, int);
    int (*memcpy_async)(void *, const void *, std::size_t, int, Stream);
    int (*stream_create)(Stream *, unsigned);
    int (*stream_destroy)(Stream);
    int (*stream_synchronize)(Stream);
    int (*event_create)(Event *, unsigned);
    int (*event_destroy)(Event);
    int (*event_record)(Event, Stream);
    int (*event_query)(Event);
    int (*event_synchronize)(Event);
};

class CudaEvent final : public Device::Event {
public:
    CudaEvent(const Api &api, Api::Stream stream) : api_(api) {
        api_.check(api_.event_create(&event_, Api::DisableTiming), "cudaEventCreate");
        if (const int error = api_.event_record(event_, stream); error != Api::Success) {
            api_.event_destroy(event_);
            api_.check(error, "cudaEventRecord");
        }
    }
    ~CudaEvent() override { api_.event_destroy(event_); }

    bool has_passed() override {
        const int error = api_.event_query(event_);
        if (error != Api::NotReady)
            api_.check(error, "a copy to the device");
        return error == Api::Success;
    }
    void wait() override { api_.check(api_.event_synchronize(event_), "a copy to the device"); }

private:
    const Api &api_;
    Api::Event event_ = nullptr;
};

class Cuda final : public Device {
public:
    Cuda(int number, const Runtime &runtime) : api_(runtime), number_(number) {
        int count = 0;
        api_.check(api_.device_count(&count), "CUDA cannot be used, cudaGetDeviceCount");
        if (number >= count)
            throw DeviceError("CUDA has " + std::to_string(count) + " device(s), and not number " + std::to_string(number));
        api_.check(api_.set_device(number), "cudaSetDevice");
        api_.check(api_.stream_create(&stream_, Api::NonBlocking), "cudaStreamCreate");
    }
    ~Cuda() override { api_.stream_destroy(stream_); }

    std::string name() const override {
        std::array<char, 32> bus{};
        const bool is_known = api_.pci_bus_id(bus.data(), static_cast<int>(bus.size()), number_) == Api::Success;
        return "CUDA device " + std::to_string(number_) + (is_known ? std::string(" at ") + bus.data() : "");
    }

    void *allocate_pinned(std::size_t nbytes) override {
        void *memory = nullptr;
        api_.check(api_.host_alloc(&memory, nbytes, 0), "cudaHostAlloc of " + std::to_string(nbytes) + " bytes");
        return memory;
    }
    void free_pinned(void *memory) noexcept override { api_.free_host(memory); }

    void *allocate(std::size_t nbytes) override {
        void *memory = nullptr;
        api_.check(api_.malloc(&memory, nbytes), "cudaMalloc of " + std::to_string(nbytes) + " bytes");
        return memory;
    }
    void free(void *memory) noexcept override { api_.free(memory); }

    void copy_in(void *to, const void *pinned, std::size_t nbytes) override {
        api_.check(api_.memcpy_async(to, pinned, nbytes, Api::HostToDevice, stream_), "cudaMemcpyAsync");
    }
    std::unique_ptr<Event> mark() override { return std::make_unique<CudaEvent>(api_, stream_); }
    void synchronize() override { api_.check(api_.stream_synchronize(stream_), "a copy to the device"); }

    void copy_out(void *to, const void *from, std::size_t nbytes) override {
        api_.check(api_.memcpy(to, from, nbytes, Api::DeviceToHost), "cudaMemcpy");
    }

private:
    Api api_;
    int number_;
    Api::Stream stream_ = nullptr;
};

} // namespace

std::unique_ptr<Device> make_cuda(int number, const std::string &runtime) {
    // The first has no version: it is that of a toolkit which is installed; the others come with programs.
    const std::vector<std::string> names = {"libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"};
    return std::make_unique<Cuda>(number, Runtime("CUDA", runtime.empty() ? names : std::vector<std::string>{runtime}));
}
