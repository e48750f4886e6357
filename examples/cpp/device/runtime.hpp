#ifndef RUNTIME_HPP
#define RUNTIME_HPP

#include <string>
#include <vector>

// A library that is looked for when the program runs, so that it is needed neither to build the program nor to use another device. It
// stays loaded until the program ends, because it may have threads.
class Runtime {
public:
    // The first that there is of these, which belong to what users know as `what`. Throws DeviceError.
    Runtime(const std::string &what, const std::vector<std::string> &names);

    // Sets a pointer to the function of that name. Throws DeviceError if there is none.
    template <class Result, class... Arguments> void find(Result (*&function)(Arguments...), const char *name) const {
        function = reinterpret_cast<Result (*)(Arguments...)>(address(name));
    }

private:
    void *address(const char *name) const;

    std::string what_, name_;
    void *handle_ = nullptr;
};

#endif
