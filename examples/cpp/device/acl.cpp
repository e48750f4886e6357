#include "acl.hpp"

#include <cstdint>
#include <vector>

#include "runtime.hpp"

namespace {

// What is used of the runtime's interface, so that its headers are not needed.
struct Api {
    enum : int { Success = 0, RepeatInitialize = 100002 };
    enum : int { HostToDevice = 1, DeviceToHost = 2 };
    enum : int { HugeFirst = 0 };
    enum : int { Recorded = 1 };

    explicit Api(const Runtime &runtime) {
        runtime.find(recent_message, "aclGetRecentErrMsg");
        runtime.find(init, "aclInit");
        runtime.find(finalize, "aclFinalize");
        runtime.find(soc_name, "aclrtGetSocName");
        runtime.find(device_count, "aclrtGetDeviceCount");
        runtime.find(set_device, "aclrtSetDevice");
        runtime.find(reset_device, "aclrtResetDevice");
        runtime.find(malloc_host, "aclrtMallocHost");
        runtime.find(free_host, "aclrtFreeHost");
        runtime.find(malloc, "aclrtMalloc");
        runtime.find(free, "aclrtFree");
        runtime.find(memcpy, "aclrtMemcpy");
        runtime.find(memcpy_async, "aclrtMemcpyAsync");
        runtime.find(create_stream, "aclrtCreateStream");
        runtime.find(destroy_stream, "aclrtDestroyStream");
        runtime.find(synchronize_stream, "aclrtSynchronizeStream");
        runtime.find(create_event, "aclrtCreateEvent");
        runtime.find(destroy_event, "aclrtDestroyEvent");
        runtime.find(record_event, "aclrtRecordEvent");
        runtime.find(query_event, "aclrtQueryEventStatus");
        runtime.find(synchronize_event, "aclrtSynchronizeEvent");
    }

    void check(int error, const std::string &call) const {
        if (error == Success)
            return;
        const char *message = recent_message();
        throw DeviceError(call + ": error " + std::to_string(error) + (message && *message ? ", " + std::string(message) : ""));
    }

    const char *(*recent_message)();
    int (*init)(const char *);
    int (*finalize)();
    const char *(*soc_name)();
    int (*device_count)(std::uint32_t *);
    int (*set_device)(std::int32_t);
    int (*reset_device)(std::int32_t);
    int (*malloc_host)(void **, std::size_t);
    int (*free_host)(void *);
    int (*malloc)(void **, std::size_t, int);
    int (*free)(void *);
    int (*memcpy)(void *, std::size_t, const void *, std::size_t, int);
    int (*memcpy_async)(void *, std::size_t, const void *, std::size_t, int, void *);
    int (*create_stream)(void **);
    int (*destroy_stream)(void *);
    int (*synchronize_stream)(void *);
    int (*create_event)(void **);
    int (*destroy_event)(void *);
    int (*record_event)(void *, void *);
    int (*query_event)(void *, int *);
    int (*synchronize_event)(void *);
};

// The runtime, begun, with one device. A part of Acl of its own, so that it ends also if the rest of that cannot be made.
class Session {
public:
    Session(const Api &api, int number) : api_(api), number_(number) {
        const int error = api.init(nullptr);
        if (error != Api::RepeatInitialize) // somebody else in this process was first
            api.check(error, "ACL cannot be used, aclInit");
        begun_ = error == Api::Success;
        try {
            std::uint32_t count = 0;
            api.check(api.device_count(&count), "ACL cannot be used, aclrtGetDeviceCount");
            if (static_cast<std::uint32_t>(number) >= count)
                throw DeviceError("ACL has " + std::to_string(count) + " device(s), and not number " + std::to_string(number));
            api.check(api.set_device(number), "aclrtSetDevice");
        } catch (...) {
            finalize();
            throw;
        }
    }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;
    ~Session() {
        api_.reset_device(number_);
        finalize();
    }

private:
    void finalize() {
        if (begun_)
            api_.finalize();
    }

    const Api &api_;
    int number_;
    bool begun_ = false;
};

// One for each copy: only a special kind of event of later versions could be recorded again.
class AclEvent final : public Device::Event {
public:
    AclEvent(const Api &api, void *stream) : api_(api) {
        api_.check(api_.create_event(&event_), "aclrtCreateEvent");
        if (const int error = api_.record_event(event_, stream); error != Api::Success) {
            api_.destroy_event(event_);
            api_.check(error, "aclrtRecordEvent");
        }
    }
    ~AclEvent() override { api_.destroy_event(event_); }

    bool has_passed() override {
        int status = 0;
        api_.check(api_.query_event(event_, &status), "a copy to the device");
        return status == Api::Recorded;
    }
    void wait() override { api_.check(api_.synchronize_event(event_), "a copy to the device"); }

private:
    const Api &api_;
    void *event_ = nullptr;
};

class Acl final : public Device {
public:
    Acl(int number, const Runtime &runtime) : api_(runtime), number_(number), session_(api_, number) {
        api_.check(api_.create_stream(&stream_), "aclrtCreateStream");
    }
    ~Acl() override { api_.destroy_stream(stream_); }

    std::string name() const override {
        const char *soc = api_.soc_name();
        return "ACL device " + std::to_string(number_) + (soc ? ", " + std::string(soc) : "");
    }
    std::size_t alignment() const noexcept override { return 64; }

    void *allocate_pinned(std::size_t nbytes) override {
        void *memory = nullptr;
        api_.check(api_.malloc_host(&memory, nbytes), "aclrtMallocHost of " + std::to_string(nbytes) + " bytes");
        return memory;
    }
    void free_pinned(void *memory) noexcept override { api_.free_host(memory); }

    void *allocate(std::size_t nbytes) override {
        void *memory = nullptr;
        api_.check(api_.malloc(&memory, nbytes, Api::HugeFirst), "aclrtMalloc of " + std::to_string(nbytes) + " bytes");
        return memory;
    }
    void free(void *memory) noexcept override { api_.free(memory); }

    void copy_in(void *to, const void *pinned, std::size_t nbytes) override {
        api_.check(api_.memcpy_async(to, nbytes, pinned, nbytes, Api::HostToDevice, stream_), "aclrtMemcpyAsync");
    }
    std::unique_ptr<Event> mark() override { return std::make_unique<AclEvent>(api_, stream_); }
    void synchronize() override { api_.check(api_.synchronize_stream(stream_), "a copy to the device"); }

    void copy_out(void *to, const void *from, std::size_t nbytes) override {
        api_.check(api_.memcpy(to, nbytes, from, nbytes, Api::DeviceToHost), "aclrtMemcpy");
    }

private:
    Api api_;
    int number_;
    Session session_;
    void *stream_ = nullptr;
};

} // namespace

std::unique_ptr<Device> make_acl(int number, const std::string &runtime) {
    return std::make_unique<Acl>(number, Runtime("ACL", {runtime.empty() ? "libascendcl.so" : runtime}));
}
