// Checks of exceptions, for the harness of tests/c.
#ifndef THROWS_HPP
#define THROWS_HPP

#include <safetensors_lazy.hpp>

#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../c/fixture.h"
#include "../c/test.h"

namespace st = safetensors_lazy;

template <class Function> bool throws(st_status status, const char *fragment, Function function) {
    try {
        function();
    } catch (const st::Error &error) {
        if (error.status() == status && std::strstr(error.what(), fragment) &&
            test_is_one_line(error.what(), std::strlen(error.what())))
            return true;
        std::fprintf(stderr, "%s: %s\n", error.status_name(), error.what());
        return false;
    }
    std::fprintf(stderr, "nothing was thrown\n");
    return false;
}

#define THROWS(status, fragment, expression) CHECK(throws(status, fragment, [&] { (void)(expression); }))

inline st::Checkpoint open_sample(st::OpenOptions options = {}) {
    return st::Checkpoint(fixture_write("sample.safetensors", &fixture_sample), options);
}

inline st::Checkpoint open_fixture(const fixture &file, st::OpenOptions options = {}) {
    return st::Checkpoint(fixture_write("fixture.safetensors", &file), options);
}

// Whether an expression compiles for an object of type X, such as a temporary, from which nothing may be had that would dangle:
// COMPILES(name, std::declval<X>().data()) defines name<X>::value.
#define COMPILES(name, expression) \
    template <class X, class = void> struct name : std::false_type {}; \
    template <class X> struct name<X, std::void_t<decltype(expression)>> : std::true_type {}

#endif
