#include "device.hpp"

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
        const int number = std::stoi(digits);
        if (number < 0 || digits != std::to_string(number))
            throw std::invalid_argument(name);
        return kind == "cuda" ? make_cuda(number, runtime) : make_acl(number, runtime);
    }
    if (!runtime.empty())
        throw std::invalid_argument("only CUDA and ACL have a runtime");
    if (name == "host")
        return make_host();
    if (name == "auto")
        return first_that_works();
    throw std::invalid_argument(name);
}
