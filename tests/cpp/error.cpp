#include "throws.hpp"

#include <cerrno>
#include <stdexcept>
#include <string>
#include <vector>

static void carries_what_the_call_said() {
    try {
        st::Checkpoint("/nonexistent/file");
        CHECK(!"thrown");
    } catch (const st::Error &error) {
        CHECK(error.status() == ST_ERR_IO && error.os_error() == ENOENT);
        CHECK(std::string(error.status_name()) == "ST_ERR_IO");
        CHECK(std::string(error.what()).find("/nonexistent/file") != std::string::npos);
    }
}

static void is_a_runtime_error() {
    bool caught = false;
    try {
        st::Checkpoint("/nonexistent/file");
    } catch (const std::runtime_error &error) {
        caught = error.what()[0] != 0;
    }
    CHECK(caught);
}

static void can_be_made_and_copied() {
    const st::Error error(ST_ERR_TRUNCATED, "message", 5), copy = error;
    CHECK(copy.status() == ST_ERR_TRUNCATED && copy.os_error() == 5 && std::string(copy.what()) == "message");
    CHECK(st::Error(12345, "").status_name() && std::string(st::Error(ST_OK, "").status_name()) == "ST_OK");
}

static void span_is_a_range() {
    int numbers[] = {1, 2, 3};
    const st::Span<int> span(numbers, 3), empty;
    int sum = 0;
    for (int number : span)
        sum += number;
    CHECK(sum == 6 && span.size() == 3 && span[2] == 3 && span.data() == numbers && !span.empty());
    CHECK(empty.empty() && empty.size() == 0 && empty.begin() == empty.end());
    CHECK(std::vector<int>(span.begin(), span.end()).size() == 3);
    span[0] = 7;
    CHECK(numbers[0] == 7);
}

static const test_case cases[] = {
    CASE(carries_what_the_call_said),
    CASE(is_a_runtime_error),
    CASE(can_be_made_and_copied),
    CASE(span_is_a_range),
};

TEST_MAIN(cases)
