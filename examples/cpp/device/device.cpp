#include "device.hpp"

#include "../arguments.hpp"
#include "acl.hpp"
#include "cuda.hpp"
#include "host.hpp"

static std::unique_ptr<Device> first_that_works() {
    try {
        return make_cuda(0, "");
    } catch (const DeviceError &) {
    }
    try {
        return make_acl(0, "");
    } catch (const DeviceError &) {
    }
    return make_host();
}

std::unique_ptr<Device> make_device(const std::string &name, const std::string &runtime) {
    const std::string kind = name.substr(0, name.find(':'));
    if (kind == "cuda" || kind == "acl") {
        const std::string digits = kind == name ? "0" : name.substr(kind.size() + 1);
        const auto number = static_cast<int>(number_of("the number of --device", digits, 0));
        return kind == "cuda" ? make_cuda(number, runtime) : make_acl(number, runtime);
    }
    if (!runtime.empty())
        throw ArgumentError("--runtime is for CUDA and ACL only");
    if (name == "host")
        return make_host();
    if (name == "auto")
        return first_that_works();
    throw ArgumentError("--device must be auto, host, cuda, acl, cuda:N or acl:N, not '" + name + "'");
}
