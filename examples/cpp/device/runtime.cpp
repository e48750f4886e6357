#include "runtime.hpp"

#include <dlfcn.h>

#include "device.hpp"

Runtime::Runtime(const std::string &what, const std::vector<std::string> &names) : what_(what) {
    std::string why;
    for (const std::string &name : names) {
        handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_) {
            name_ = name;
            return;
        }
        why += (why.empty() ? "" : "; ") + std::string(dlerror());
    }
    throw DeviceError(what + " cannot be used, its runtime was not found: " + why);
}

void *Runtime::address(const char *name) const {
    if (void *address = dlsym(handle_, name))
        return address;
    throw DeviceError(what_ + " cannot be used: " + name_ + " has no " + name);
}
