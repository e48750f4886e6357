#include "throws.hpp"

#include <thread>
#include <type_traits>
#include <utility>

static_assert(!std::is_copy_constructible_v<st::Task> && !std::is_copy_assignable_v<st::Task>);
static_assert(std::is_nothrow_move_constructible_v<st::Task> && std::is_nothrow_move_assignable_v<st::Task>);

static bool is_zero(const st_progress &progress) {
    return progress.bytes_done == 0 && progress.bytes_total == 0 && progress.items_done == 0 && progress.items_total == 0 &&
           progress.bytes_per_second == 0;
}

static st::WriterOptions watched_by(const st::Task &task) {
    st::WriterOptions options;
    options.flags = ST_WRITE_NO_SYNC | ST_WRITE_BLAKE3;
    options.task = &task;
    return options;
}

static void write(const st::WriterOptions &options) {
    static const float numbers[] = {1, 2, 3, 4};
    st::Writer writer(fixture_path("task.safetensors"), options);
    writer.add("a", {4}, numbers);
    writer.add("b", {2, 2}, numbers);
    writer.finish();
}

static void watches_writing_and_verifying() {
    const st::Task task;
    CHECK(is_zero(task.progress()));
    write(watched_by(task));
    CHECK(task.progress().bytes_done >= 32 && task.progress().bytes_done == task.progress().bytes_total);
    CHECK(task.progress().items_done == 2 && task.progress().items_total == 2);

    const st::Checkpoint checkpoint(fixture_path("task.safetensors"));
    const st::Task other;
    st::VerifyOptions options;
    options.task = &other;
    CHECK(checkpoint.verify(options));
    CHECK(other.progress().items_done == 2 && other.progress().bytes_done == other.progress().bytes_total);
}

static void cancels_for_good() {
    write({});
    const st::Checkpoint checkpoint(fixture_path("task.safetensors"));
    const st::Task task;
    std::thread([&task] { task.cancel(); }).join();
    st::VerifyOptions options;
    options.task = &task;
    options.sha256 = {"0000000000000000000000000000000000000000000000000000000000000000"};
    for (int i = 0; i < 2; i++) {
        THROWS(ST_ERR_CANCELLED, "", checkpoint.verify(options));
        THROWS(ST_ERR_CANCELLED, "", write(watched_by(task)));
    }
}

static void may_go_before_the_writer() {
    const float number = 1;
    st::Writer writer = [&] {
        const st::Task task;
        return st::Writer(fixture_path("task.safetensors"), watched_by(task));
    }();
    writer.add("one", {}, st::Span<const float>(&number, 1));
    writer.finish();
}

static void moved_from_does_nothing() {
    st::Task first;
    st_task *handle = first.get();
    st::Task second = std::move(first);
    CHECK(second.get() == handle && !first.get() && is_zero(first.progress()));
    first.cancel();
    write(watched_by(second));
    write(watched_by(first));
    first = std::move(second);
    st::Task &itself = first;
    first = std::move(itself);
    CHECK(first.get() == handle && first.progress().items_done == 2);
}

static const test_case cases[] = {
    CASE(watches_writing_and_verifying),
    CASE(cancels_for_good),
    CASE(may_go_before_the_writer),
    CASE(moved_from_does_nothing),
};

TEST_MAIN(cases)
