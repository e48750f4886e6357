#include "throws.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>
#include <vector>

using Bytes = std::vector<std::byte>;

static const fixture_tensor tensors[] = {
    {"a", "F32", "[64,64]", 16384, nullptr}, {"large", "U8", "[1000000]", 1000000, nullptr}, {"odd", "I16", "[3]", 6, nullptr},
    {"empty", "F64", "[0,3]", 0, nullptr},   {"scalar", "F32", "[]", 4, nullptr},           {"b.0", "F32", "[100,100]", 40000, nullptr},
    {"b.1", "BF16", "[50]", 100, nullptr},
};
static const fixture file = {tensors, LEN(tensors), nullptr, 8};
static const std::size_t file_bytes = 16384 + 1000000 + 6 + 4 + 40000 + 100;

/* Each of these fills the least staging memory that there can be: while one is held, there is no room for the next. */
static const fixture_tensor full_tensors[] = {
    {"0", "U8", "[60000]", 60000, nullptr}, {"1", "U8", "[60000]", 60000, nullptr}, {"2", "U8", "[60000]", 60000, nullptr},
    {"3", "U8", "[60000]", 60000, nullptr}, {"4", "U8", "[60000]", 60000, nullptr}, {"5", "U8", "[60000]", 60000, nullptr},
};
static const fixture full = {full_tensors, LEN(full_tensors), nullptr, 8};

static_assert(!std::is_copy_constructible_v<st::Load> && !std::is_copy_assignable_v<st::Load>);
static_assert(!std::is_copy_constructible_v<st::Loaded> && !std::is_copy_assignable_v<st::Loaded>);
static_assert(!std::is_copy_constructible_v<st::Weights> && !std::is_copy_assignable_v<st::Weights>);
static_assert(std::is_nothrow_move_constructible_v<st::Load> && std::is_nothrow_move_assignable_v<st::Load>);
static_assert(std::is_nothrow_move_constructible_v<st::Loaded> && std::is_nothrow_move_assignable_v<st::Loaded>);
static_assert(std::is_nothrow_move_constructible_v<st::Weights> && std::is_nothrow_move_assignable_v<st::Weights>);
static_assert(std::is_convertible_v<st::Span<std::byte>, st::Span<const std::byte>>, "what was loaded is given to what reads");
static_assert(!std::is_convertible_v<st::Span<const std::byte>, st::Span<std::byte>>);
static_assert(std::is_convertible_v<st::Tensor, st::Request> && std::is_convertible_v<st::Slice, st::Request>);
static_assert(!std::is_convertible_v<st::Checkpoint, st::Weights>, "room for all tensors is never taken implicitly");

/* What would dangle at once. */
COMPILES(can_load, std::declval<X>().load(std::declval<std::vector<st::Request> &>()));
COMPILES(can_load_all, std::declval<X>().load_all());
COMPILES(has_begin, std::declval<X>().begin());
COMPILES(has_bytes, std::declval<X>().bytes());
COMPILES(has_data, std::declval<X>().template data<float>());
COMPILES(has_bits, std::declval<X>().template bits<float>());
COMPILES(has_bytes_of, std::declval<X>().bytes("a"));
COMPILES(has_data_of, std::declval<X>().template data<float>("a"));
COMPILES(has_block, std::declval<X>().block());
COMPILES(has_load, std::declval<X>().load());
static_assert(can_load<const st::Checkpoint &>::value && !can_load<st::Checkpoint>::value);
static_assert(can_load_all<const st::Checkpoint &>::value && can_load_all<st::Checkpoint>::value, "weights own a reference");
static_assert(has_begin<st::Load &>::value && !has_begin<st::Load>::value);
static_assert(has_bytes<st::Loaded &>::value && !has_bytes<st::Loaded>::value);
static_assert(has_data<const st::Loaded &>::value && !has_data<st::Loaded>::value && !has_bits<st::Loaded>::value);
static_assert(has_bytes_of<st::Weights &>::value && !has_bytes_of<st::Weights>::value && !has_data_of<st::Weights>::value);
static_assert(has_block<const st::Weights &>::value && !has_block<st::Weights>::value && !has_load<st::Weights>::value);

static Bytes read(const st::Slice &slice) {
    Bytes bytes(slice.nbytes());
    slice.read(bytes.data(), bytes.size());
    return bytes;
}

static bool is(st::Span<std::byte> bytes, const Bytes &expected) {
    return bytes.size() == expected.size() && std::equal(bytes.begin(), bytes.end(), expected.begin());
}

/* The options of a load through the least memory that there can be, in pieces of a page. */
static st::LoadOptions narrow() {
    st::LoadOptions options;
    options.staging = 1 << 16;
    options.piece_bytes = 4096;
    return options;
}

/* The same in whole tensors. */
static st::LoadOptions least() {
    st::LoadOptions options;
    options.staging = 1 << 16;
    return options;
}

/* Takes one piece: those of a request come in order. */
static void take(Bytes &bytes, const st::Loaded &loaded) {
    CHECK(loaded && loaded.status() == ST_OK && loaded.message().empty() && loaded.offset() == bytes.size());
    bytes.insert(bytes.end(), loaded.bytes().begin(), loaded.bytes().end());
}

/* What a load brings, by request. */
static std::vector<Bytes> taken(const st::Load &load, std::size_t requests) {
    std::vector<Bytes> all(requests);
    std::vector<bool> complete(requests);
    for (st::Loaded &loaded : load) {
        CHECK(loaded.request() < requests && !complete[loaded.request()]);
        take(all[loaded.request()], loaded);
        complete[loaded.request()] = loaded.is_last();
    }
    CHECK(load.is_done());
    for (bool is_complete : complete)
        CHECK(is_complete);
    return all;
}

static void brings_everything_staged() {
    const st::Checkpoint checkpoint = open_fixture(file);
    for (const st::LoadOptions &options : {st::LoadOptions(), narrow()}) {
        const std::vector<Bytes> all = taken(checkpoint.load(checkpoint, options), checkpoint.size());
        for (st::Tensor tensor : checkpoint)
            CHECK(all[tensor.index()] == read(tensor.slice()));
    }
}

static void brings_what_is_asked_for() {
    const st::Checkpoint checkpoint = open_fixture(file);
    CHECK(taken(checkpoint.load(checkpoint.prefix("b.")), 2)[0] == read(checkpoint["b.0"].slice()));
    CHECK(taken(checkpoint.load({checkpoint["odd"], checkpoint["a"].slice({{1, 2}})}), 2)[1] == read(checkpoint["a"].slice({{1, 2}})));
    std::vector<st::Slice> columns;
    for (std::uint32_t rank = 0; rank < 3; rank++)
        columns.push_back(checkpoint["b.0"].shard(1, rank, 3));
    const std::vector<Bytes> all = taken(checkpoint.load(columns), columns.size());
    for (std::size_t i = 0; i < columns.size(); i++)
        CHECK(all[i] == read(columns[i]));
    /* The requests may go when the load has begun. */
    auto requests = std::make_unique<std::vector<st::Request>>();
    for (const st::Slice &slice : columns)
        requests->push_back(slice);
    const st::Load load = checkpoint.load(*requests);
    requests.reset();
    CHECK(taken(load, 3)[2] == all[2]);
    for (st::Loaded &loaded : checkpoint.load(std::vector<st::Tensor>()))
        CHECK(!loaded);
    const st::Load nothing = checkpoint.load({});
    CHECK(!nothing.next() && nothing.is_done() && nothing.begin() == nothing.end());
}

static void goes_to_destinations() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Slice rows = checkpoint["a"].shard(0, 1, 4), corner = checkpoint["b.0"].slice({{90, 100}, {95, 100}});
    Bytes large(1000000 + 5);
    float numbers[16 * 64], scalar = 0, few[50];
    const std::size_t requests = 5;
    const st::Load load = checkpoint.load({
        st::Request(checkpoint["large"]).to(large.data(), large.size()).tag(7),
        st::Request(rows).tag(UINT64_MAX).to(numbers, sizeof(numbers)),
        st::Request(checkpoint["scalar"]).to(st::Span<float>(&scalar, 1)),
        st::Request(corner).to(st::Span<std::byte>(reinterpret_cast<std::byte *>(few), sizeof(few))),
        st::Request(checkpoint["empty"]).to(nullptr, 0),
    });
    std::size_t seen = 0;
    for (st::Loaded &loaded : load) {
        seen++;
        CHECK(loaded.is_last() && loaded.offset() == 0);
        if (loaded.request() == 0) {
            CHECK(loaded.tag() == 7 && loaded.tensor().name() == "large" && loaded.bytes().data() == large.data());
            CHECK(loaded.bytes().size() == 1000000);
            loaded.recycle(); /* there is nothing to hand back */
            CHECK(is(loaded.bytes(), read(checkpoint["large"].slice())));
        } else if (loaded.request() == 1) {
            CHECK(loaded.tag() == UINT64_MAX && loaded.data<float>().data() == numbers && loaded.bytes().size() == sizeof(numbers));
        }
    }
    CHECK(seen == requests && load.progress().items_done == requests && load.progress().items_total == requests);
    const std::vector<std::uint32_t> expected = rows.read_bits<std::uint32_t>();
    CHECK(std::memcmp(numbers, expected.data(), sizeof(numbers)) == 0);
    CHECK(std::memcmp(&scalar, read(checkpoint["scalar"].slice()).data(), 4) == 0);
    CHECK(std::memcmp(few, read(corner).data(), corner.nbytes()) == 0);
}

static void requests_say_what_they_are() {
    const st::Checkpoint checkpoint = open_fixture(file);
    st::Request request(checkpoint["b.1"]);
    CHECK(request.nbytes() == 100 && request.tensor().name() == "b.1");
    CHECK(st::Request(checkpoint["a"].shard(0, 0, 4)).nbytes() == 4096);
    std::uint16_t bits[50];
    st::Request &same = request.to(bits, sizeof(bits)).tag(3);
    CHECK(&same == &request);
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"b.1\"", request.to(nullptr, 100));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"b.1\"", request.to(st::Span<std::byte>()));
    THROWS(ST_ERR_UNSUPPORTED, "BF16", request.to(st::Span<std::uint16_t>(bits, 50)));
    const st::Request copy = request;
    request.to(bits + 1, sizeof(bits) - 2);
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "\"b.1\"", checkpoint.load({request}));
    CHECK(taken(checkpoint.load({copy}), 1)[0] == read(checkpoint["b.1"].slice()));
}

static void keeps_the_order_of_the_requests() {
    const st::Checkpoint checkpoint = open_fixture(file);
    std::vector<st::Request> backwards;
    for (std::size_t i = checkpoint.size(); i-- > 0;)
        backwards.push_back(st::Request(checkpoint.at(i)).tag(i));
    st::LoadOptions options = narrow();
    options.in_order = true;
    std::size_t at = 0;
    for (st::Loaded &loaded : checkpoint.load(backwards, options)) {
        CHECK(loaded.request() == at && loaded.tag() == backwards.size() - 1 - at && loaded.tensor().index() == loaded.tag());
        at += loaded.is_last();
    }
    CHECK(at == backwards.size());
}

static void options_are_passed_on() {
    const st::Checkpoint checkpoint = open_fixture(file);
    for (st::Engine engine : {st::Engine::Auto, st::Engine::Buffered, st::Engine::Direct, st::Engine::Uring}) {
        st::LoadOptions options;
        options.engine = engine;
        options.workers = 1;
        options.queue_depth = 2;
        options.block_bytes = 1 << 16;
        options.over_read = ST_OVER_READ_NONE;
        const st::Load load = checkpoint.load(checkpoint, options);
        for (st::Loaded &loaded : load)
            CHECK(engine != st::Engine::Buffered || loaded.bytes().empty() || loaded.engine() == engine);
        CHECK(load.progress().workers == 1 && load.progress().bytes_done == file_bytes);
        CHECK(engine != st::Engine::Buffered || load.progress().engines == ST_ENGINE_BUFFERED);
    }
    st::LoadOptions options;
    options.engine = st::Engine::Memory;
    THROWS(ST_ERR_UNSUPPORTED, "", checkpoint.load(checkpoint, options));
    options.engine = st::Engine(3);
    THROWS(ST_ERR_INVALID_ARGUMENT, "3", checkpoint.load(checkpoint, options));
    options = {};
    options.block_bytes = 5000;
    THROWS(ST_ERR_INVALID_ARGUMENT, "5000", checkpoint.load(checkpoint, options));
    options = {};
    options.staging = 4096;
    THROWS(ST_ERR_INVALID_ARGUMENT, "4096", checkpoint.load(checkpoint, options));
    options = {};
    options.piece_bytes = 100;
    THROWS(ST_ERR_INVALID_ARGUMENT, "100", checkpoint.load(checkpoint, options));
}

static void stages_in_memory_of_the_callers() {
    const st::Checkpoint checkpoint = open_fixture(file);
    Bytes memory(1 << 17);
    const auto inside = [&](st::Span<std::byte> bytes) {
        return bytes.empty() || (bytes.begin() >= memory.data() && bytes.end() <= memory.data() + memory.size());
    };
    st::LoadOptions options;
    options.staging = st::Span<std::byte>(memory.data(), memory.size());
    Bytes large;
    for (st::Loaded &loaded : checkpoint.load({checkpoint["large"], checkpoint["empty"]}, options)) {
        CHECK(inside(loaded.bytes()));
        if (loaded.request() == 0)
            take(large, loaded);
    }
    CHECK(large == read(checkpoint["large"].slice()));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", st::Staging(st::Span<std::byte>()));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", st::Staging(st::Span<std::byte>(memory.data(), std::size_t(0))));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.load({st::Request(checkpoint["a"]).to(memory.data(), memory.size())}, options));
}

static void pieces_are_of_the_size_asked_for() {
    const st::Checkpoint checkpoint = open_fixture(file);
    std::uint64_t at = 0;
    bool was_last = false;
    for (st::Loaded &loaded : checkpoint.load({checkpoint["large"]}, narrow())) {
        CHECK(!was_last && loaded.offset() == at && loaded.bytes().size() <= 4096 && !loaded.bytes().empty());
        at += loaded.bytes().size();
        was_last = loaded.is_last();
        THROWS(ST_ERR_UNSUPPORTED, "\"large\" comes in pieces", loaded.data<std::uint8_t>());
        THROWS(ST_ERR_UNSUPPORTED, "\"large\" comes in pieces", loaded.bits<std::int8_t>());
    }
    CHECK(was_last && at == 1000000);
}

static void elements_are_typed() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Slice columns = checkpoint["a"].slice({st::whole, {3, 5}});
    const st::Load load = checkpoint.load({checkpoint["a"], columns, checkpoint["b.1"], checkpoint["empty"]});
    for (st::Loaded &loaded : load) {
        if (loaded.request() == 0) {
            CHECK(loaded.data<float>().size() == 4096 && loaded.data<const float>().size() == 4096);
            loaded.data<float>()[0] = 1; /* staged memory may be written to */
            CHECK(loaded.bits<std::uint32_t>()[0] == 0x3f800000);
            THROWS(ST_ERR_UNSUPPORTED, "F32", loaded.data<double>());
            THROWS(ST_ERR_UNSUPPORTED, "32 bits", loaded.bits<double>());
        } else if (loaded.request() == 1) {
            CHECK(loaded.data<float>().size() == 128);
            CHECK(std::memcmp(loaded.data<float>().data(), read(columns).data(), 512) == 0);
        } else if (loaded.request() == 2) {
            CHECK(loaded.bits<std::uint16_t>().size() == 50);
            THROWS(ST_ERR_UNSUPPORTED, "BF16", loaded.data<std::uint16_t>());
        } else {
            CHECK(loaded.data<double>().empty());
        }
    }
    CHECK(checkpoint["a"].bits<std::uint32_t>()[0] != 0x3f800000);
}

static void wrong_requests_start_nothing() {
    const st::Checkpoint checkpoint = open_fixture(file), other = open_sample();
    float numbers[4096 + 1000];
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"weight\" is of another checkpoint", checkpoint.load({checkpoint["a"], other["weight"]}));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.load({st::Request(checkpoint["a"]).to(numbers, sizeof(numbers)),
                                                          st::Request(checkpoint["b.1"]).to(numbers + 4000, 100)}));
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "\"a\"", checkpoint.load({st::Request(checkpoint["a"]).to(numbers, 16383)}));
    st::Checkpoint first = open_sample();
    const st::Tensor weight = first["weight"];
    const st::Checkpoint second = std::move(first);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.load(std::vector<st::Request>()));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.load({weight}));
    CHECK(taken(second.load({weight}), 1)[0].size() == SAMPLE_WEIGHT_SIZE);
}

/* A checkpoint whose file has lost the last bytes since it was opened: "large" and what follows. */
static st::Checkpoint open_truncated() {
    const char *path = fixture_write("truncated.safetensors", &file);
    st::OpenOptions options;
    options.storage = ST_STORAGE_READ;
    st::Checkpoint checkpoint(path, options);
    CHECK(truncate(path, static_cast<off_t>(checkpoint["large"].file_offset()) + 500000) == 0);
    return checkpoint;
}

static void next_tells_of_failures_without_exceptions() {
    const st::Checkpoint checkpoint = open_truncated();
    for (const st::LoadOptions &options : {st::LoadOptions(), narrow()}) {
        std::vector<st_status> statuses(checkpoint.size(), ST_TIMEOUT);
        const st::Load load = checkpoint.load(checkpoint, options);
        while (std::optional<st::Loaded> loaded = load.next()) {
            st_status &status = statuses[loaded->request()]; /* of the piece that failed, if one did: the others come all the same */
            if (status == ST_TIMEOUT || status == ST_OK)
                status = loaded->status();
            CHECK(loaded->tensor().index() == loaded->request());
            if (*loaded)
                continue;
            THROWS(ST_ERR_TRUNCATED, "", loaded->check());
            THROWS(ST_ERR_TRUNCATED, "", loaded->bytes());
            THROWS(ST_ERR_TRUNCATED, "", loaded->data<double>());
            CHECK(loaded->message().find("truncated.safetensors") != std::string_view::npos);
            loaded->recycle();
        }
        CHECK(load.is_done() && load.progress().items_done == checkpoint.size());
        CHECK(statuses[0] == ST_OK && statuses[1] == ST_ERR_TRUNCATED && statuses[5] == ST_ERR_TRUNCATED);
    }
}

static void loops_throw_what_failed_and_can_go_on() {
    const st::Checkpoint checkpoint = open_truncated();
    const st::Load load = checkpoint.load(checkpoint);
    std::size_t arrived = 0, failed = 0;
    while (!load.is_done()) {
        try {
            for (st::Loaded &loaded : load)
                arrived += loaded.status() == ST_OK;
        } catch (const st::Error &error) {
            CHECK(error.status() == ST_ERR_TRUNCATED);
            failed++;
        }
    }
    CHECK(arrived >= 1 && failed >= 3 && arrived + failed == checkpoint.size());
    THROWS(ST_ERR_TRUNCATED, "", checkpoint.load_all());
}

static void full_staging_memory_is_told() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Load load = checkpoint.load({checkpoint["large"]}, narrow());
    std::vector<st::Loaded> held;
    Bytes large;
    try {
        for (;;)
            held.push_back(std::move(*load.next()));
    } catch (const st::Error &error) {
        CHECK(error.status() == ST_ERR_STAGING_FULL);
    }
    CHECK(!held.empty() && held.size() <= 16);
    CHECK(!load.next(std::chrono::milliseconds(0)) && !load.is_done());
    CHECK(!load.next(std::chrono::milliseconds(-1)) && !load.is_done());
    for (st::Loaded &loaded : held)
        take(large, loaded);
    held[0].recycle();
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"large\" were handed back", held[0].bytes());
    held[0].recycle();
    const std::optional<st::Loaded> next = load.next();
    CHECK(next && *next);
    take(large, *next);
    held.clear();
    for (st::Loaded &loaded : load)
        take(large, loaded);
    CHECK(large == read(checkpoint["large"].slice()));
}

static void waits_no_longer_than_it_is_told_to() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Load load = checkpoint.load(checkpoint);
    std::size_t arrived = 0;
    while (!load.is_done())
        arrived += load.next(std::chrono::milliseconds(0)).has_value();
    CHECK(arrived == checkpoint.size() && !load.next(std::chrono::hours(1)) && !load.next());
}

static void progress_ends_at_the_total() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Load load = checkpoint.load(checkpoint);
    CHECK(load.progress().items_total == checkpoint.size() && load.progress().bytes_total == file_bytes && load.get());
    for (st::Loaded &loaded : load)
        CHECK(load.progress().bytes_done <= file_bytes && loaded);
    const st_progress progress = load.progress();
    CHECK(progress.items_done == checkpoint.size() && progress.bytes_done == file_bytes && progress.bytes_read > 0);
    CHECK(progress.engines != 0 && progress.workers == 0); // it is small
}

/* Numbers of things that a load must not leave behind. */
static std::size_t threads() { return test_entries("/proc/self/task"); }
static std::size_t descriptors() { return test_entries("/proc/self/fd"); }

static void breaking_out_cancels_and_frees() {
    const std::size_t threads_before = threads(), descriptors_before = descriptors();
    {
        const st::Checkpoint checkpoint = open_fixture(file);
        const std::size_t with_checkpoint = descriptors();
        for (int i = 0; i < 10; i++) {
            for (st::Loaded &loaded : checkpoint.load(checkpoint, narrow())) {
                CHECK(loaded);
                break;
            }
            try {
                for (st::Loaded &loaded : checkpoint.load(checkpoint, narrow()))
                    throw loaded.request();
            } catch (std::size_t) {
            }
            (void)checkpoint.load(checkpoint); /* asked for, and not looked at */
        }
        test_threads_end(threads_before);
        CHECK(descriptors() == with_checkpoint);
    }
    CHECK(descriptors() == descriptors_before);
}

static void cancels() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Load load = checkpoint.load(checkpoint, narrow());
    const std::optional<st::Loaded> first = load.next();
    const Bytes bytes(first->bytes().begin(), first->bytes().end());
    std::thread([&load] { load.cancel(); }).join();
    THROWS(ST_ERR_CANCELLED, "", load.next());
    THROWS(ST_ERR_CANCELLED, "", load.next(std::chrono::milliseconds(0)));
    THROWS(ST_ERR_CANCELLED, "", load.begin());
    CHECK(!load.is_done() && is(first->bytes(), bytes));
}

static void what_was_delivered_may_go_later() {
    std::optional<st::Loaded> staged, sent;
    Bytes large(1000000);
    {
        const st::Checkpoint checkpoint = open_fixture(file);
        {
            const st::Load load =
                checkpoint.load({checkpoint["a"], st::Request(checkpoint["large"]).to(large.data(), large.size())});
            while (std::optional<st::Loaded> loaded = load.next())
                (loaded->request() == 0 ? staged : sent) = std::move(loaded);
            CHECK(staged->bytes().size() == 16384);
        }
        THROWS(ST_ERR_INVALID_ARGUMENT, "went with their load", staged->bytes());
        THROWS(ST_ERR_INVALID_ARGUMENT, "went with their load", staged->data<float>());
        CHECK(is(sent->bytes(), read(checkpoint["large"].slice())) && staged->tensor().name() == "a");
    }
    /* What was delivered holds the checkpoint, too. */
    CHECK(sent->data<std::uint8_t>().size() == 1000000 && sent->bits<std::int8_t>().size() == 1000000);
    CHECK(sent->tensor().name() == "large" && is(sent->bytes(), read(sent->tensor().slice())));
    staged->recycle();
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\" were handed back", staged->bytes());
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"a\" were handed back", staged->data<float>());
    /* Iterators as well. */
    st::Load::iterator place;
    {
        const st::Checkpoint checkpoint = open_fixture(file);
        const st::Load load = checkpoint.load(checkpoint);
        place = load.begin();
        CHECK(place == place && place != load.end() && place->status() == ST_OK);
    }
    THROWS(ST_ERR_INVALID_ARGUMENT, "", ++place);
    CHECK(place == st::Load::iterator());
}

static void moved_from_holds_nothing() {
    const st::Checkpoint checkpoint = open_fixture(file);
    st::Load first = checkpoint.load(checkpoint);
    st_load *handle = first.get();
    st::Load second = std::move(first);
    CHECK(second.get() == handle && !first.get() && first.is_done() && first.progress().items_total == 0);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.next());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.begin());
    first.cancel();
    first = checkpoint.load({checkpoint["a"]});
    first = std::move(second); /* the other one is cancelled and freed */
    st::Load &itself = first;
    first = std::move(itself);
    CHECK(first.get() == handle);

    std::optional<st::Loaded> one = first.next(), two = first.next();
    const std::size_t request = one->request();
    st::Loaded moved = std::move(*one);
    CHECK(moved && !*one && moved.request() == request && moved.bytes().size() == moved.tensor().nbytes());
    THROWS(ST_ERR_INVALID_ARGUMENT, "moved from", one->bytes());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", one->tensor());
    one->recycle();
    *two = std::move(moved);
    st::Loaded &same = *two;
    *two = std::move(same);
    CHECK(two->request() == request && two->bytes().size() == two->tensor().nbytes());
}

static void several_threads_pull() {
    const st::Checkpoint checkpoint = open_fixture(file);
    std::vector<st::Request> rows;
    for (std::uint32_t i = 0; i < 100; i++)
        rows.push_back(st::Request(checkpoint["large"].shard(0, i, 100)));
    for (int round = 0; round < 3; round++) {
        const st::Load load = checkpoint.load(rows, least());
        std::mutex mutex;
        std::vector<int> seen(rows.size());
        const auto work = [&] {
            for (st::Loaded &loaded : load) {
                CHECK(is(loaded.bytes(), read(checkpoint["large"].shard(0, static_cast<std::uint32_t>(loaded.request()), 100))));
                const std::lock_guard<std::mutex> lock(mutex);
                seen[loaded.request()]++;
            }
        };
        std::thread other(work);
        work();
        other.join();
        for (int times : seen)
            CHECK(times == 1);
    }
}

/* Starts a thread that loops over a load, and counts what arrives. */
static std::thread counting(const st::Load &load, std::atomic<std::size_t> &count) {
    return std::thread([&] {
        for (st::Loaded &loaded : load)
            count += !!loaded;
    });
}

/* Time for other threads to come to where they wait: what is tested holds as well if they do not. */
static void others_wait() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

static void loops_wait_for_room_that_others_hold() {
    const st::Checkpoint checkpoint = open_fixture(full);
    for (int round = 0; round < (test_is_instrumented() ? 2 : 20); round++) {
        const st::Load load = checkpoint.load(checkpoint, least());
        std::atomic<int> seen[LEN(full_tensors)] = {};
        const auto work = [&] {
            for (st::Loaded &loaded : load) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
                CHECK(loaded.is_last() && is(loaded.bytes(), read(loaded.tensor().slice())));
                seen[loaded.request()]++;
            }
        };
        std::vector<std::thread> others;
        for (int i = 0; i < 3; i++)
            others.emplace_back(work);
        work();
        for (std::thread &other : others)
            other.join();
        for (const std::atomic<int> &times : seen)
            CHECK(times == 1);
        CHECK(load.is_done());
    }
}

static void loops_that_keep_everything_find_no_room() {
    const st::Checkpoint checkpoint = open_fixture(full);
    for (int others = 0; others < 3; others++) {
        const st::Load load = checkpoint.load(checkpoint, least());
        std::mutex mutex;
        std::vector<st::Loaded> kept;
        const auto keep = [&] {
            for (st::Loaded &loaded : load) {
                const std::lock_guard<std::mutex> lock(mutex);
                kept.push_back(std::move(loaded));
            }
        };
        const auto find_no_room = [&] { THROWS(ST_ERR_STAGING_FULL, "", keep()); };
        std::vector<std::thread> them;
        for (int i = 0; i < others; i++)
            them.emplace_back(find_no_room);
        find_no_room();
        for (std::thread &one : them)
            one.join();
        CHECK(kept.size() == 1 && is(kept[0].bytes(), read(kept[0].tensor().slice())));
        /* They can go on when another thread has let go of it. */
        std::thread([&] { kept.clear(); }).join();
        std::atomic<std::size_t> count(0);
        counting(load, count).join();
        CHECK(count == LEN(full_tensors) - 1);
    }
}

static void loops_do_not_wait_for_their_own_thread() {
    const st::Checkpoint checkpoint = open_fixture(full);
    const st::Load load = checkpoint.load(checkpoint, least());
    std::size_t outer = 0;
    const auto nested = [&] {
        for (st::Loaded &held : load) {
            outer += held.is_last();
            for (st::Loaded &loaded : load)
                CHECK(!loaded.is_last());
        }
    };
    THROWS(ST_ERR_STAGING_FULL, "", nested());
    CHECK(outer == 1);
}

static void loops_wait_for_room_that_other_threads_make() {
    const st::Checkpoint checkpoint = open_fixture(full);
    const st::Load load = checkpoint.load(checkpoint, least());
    std::atomic<std::size_t> count(0);
    std::optional<st::Loaded> kept;
    for (st::Loaded &loaded : load) {
        kept = std::move(loaded);
        /* As long as this loop may go on, the other one waits, whoever makes room. */
        std::thread other = counting(load, count);
        others_wait();
        CHECK(count == 0);
        std::thread([&] { kept.reset(); }).join();
        other.join();
    }
    CHECK(count == LEN(full_tensors) - 1 && load.is_done());
}

static void cancel_wakes_loops_that_wait_for_room() {
    const st::Checkpoint checkpoint = open_fixture(full);
    for (const bool by_handle : {false, true}) {
        const st::Load load = checkpoint.load(checkpoint, least());
        const st::Load::iterator place = load.begin();
        const auto loop = [&] { THROWS(ST_ERR_CANCELLED, "", load.begin()); };
        std::thread one(loop), two(loop);
        others_wait();
        if (by_handle)
            st_load_cancel(load.get());
        else
            load.cancel();
        one.join();
        two.join();
        CHECK(is(place->bytes(), read(place->tensor().slice())) && !load.is_done());
        st::Load::iterator same = place;
        THROWS(ST_ERR_CANCELLED, "", ++same);
        CHECK(same == load.end());
        loop();
    }
}

static void what_was_delivered_goes_as_the_load_goes() {
    const st::Checkpoint checkpoint = open_fixture(full);
    for (int round = 0; round < (test_is_instrumented() ? 20 : 300); round++) {
        std::optional<st::Load> load = checkpoint.load(checkpoint, least());
        std::optional<st::Loaded> loaded = load->next();
        std::atomic<bool> go(false);
        std::thread other([&] {
            while (!go)
                ;
            if (round % 2)
                loaded->recycle();
            loaded.reset();
        });
        go = true;
        load.reset();
        other.join();
    }
}

static void what_was_delivered_may_go_in_another_thread() {
    const st::Checkpoint checkpoint = open_fixture(file);
    const st::Load load = checkpoint.load({checkpoint["large"]}, narrow());
    Bytes large;
    while (std::optional<st::Loaded> loaded = load.next())
        std::thread([&large, own = std::move(*loaded)] { take(large, own); }).join();
    CHECK(large == read(checkpoint["large"].slice()));
}

static void a_reference_of_its_own() {
    std::optional<st::Load> load;
    Bytes large(1000000), expected;
    {
        const st::Checkpoint checkpoint = open_fixture(file);
        expected = read(checkpoint["large"].slice());
        load = checkpoint.load({st::Request(checkpoint["large"]).to(large.data(), large.size())});
    }
    CHECK(load->next() && !load->next() && large == expected);
}

static void buffers_are_copied() {
    std::size_t len = 0;
    unsigned char *bytes = fixture_bytes(&file, &len);
    {
        const st::Checkpoint checkpoint = st::Checkpoint::from_buffer(bytes, len);
        const st::Load load = checkpoint.load(checkpoint);
        const std::vector<Bytes> all = taken(load, checkpoint.size());
        CHECK(all[1] == read(checkpoint["large"].slice()) && load.progress().engines == ST_ENGINE_MEMORY);
        const st::Weights weights = checkpoint.load_all();
        CHECK(is(weights.bytes("large"), all[1]));
        st::LoadOptions options;
        options.engine = st::Engine::Buffered;
        THROWS(ST_ERR_UNSUPPORTED, "", checkpoint.load(checkpoint, options));
    }
    std::free(bytes);
}

static void tensors_are_verified_when_first_used() {
    const char *path = fixture_path("verified.safetensors");
    {
        const st::Checkpoint source = open_fixture(file);
        st::WriterOptions options;
        options.flags = ST_WRITE_BLAKE3 | ST_WRITE_NO_SYNC;
        st::Writer writer(path, options);
        for (st::Tensor tensor : source)
            writer.add(tensor);
        writer.finish();
    }
    st::OpenOptions options;
    options.verify = ST_VERIFY_FIRST_USE;
    const st::Checkpoint good(path, options);
    CHECK(taken(good.load(good), good.size())[good["large"].index()] == read(good["large"].slice()));
    fixture_flip(path, good["large"].file_offset() + 77);
    for (const st::LoadOptions &how : {st::LoadOptions(), narrow()}) {
        const st::Checkpoint checkpoint(path, options);
        const st::Load load = checkpoint.load(checkpoint, how);
        bool found = false;
        while (std::optional<st::Loaded> loaded = load.next()) {
            CHECK(loaded->status() == (loaded->tensor().name() == "large" ? ST_ERR_CHECKSUM_MISMATCH : ST_OK));
            found = found || !*loaded;
        }
        CHECK(found);
    }
    THROWS(ST_ERR_CHECKSUM_MISMATCH, "\"large\"", st::Checkpoint(path, options).load_all());
}

static void is_laid_out(const st::Weights &weights) {
    std::vector<std::pair<std::size_t, std::size_t>> runs;
    for (st::Tensor tensor : weights.checkpoint()) {
        const st::Span<std::byte> bytes = weights.bytes(tensor);
        CHECK(is(bytes, read(tensor.slice())) && bytes.data() == weights.bytes(tensor.name()).data());
        CHECK(bytes.data() == weights.block().data() + weights.offset(tensor));
        CHECK((reinterpret_cast<std::uintptr_t>(bytes.data()) - reinterpret_cast<std::uintptr_t>(weights.block().data()) -
               tensor.file_offset()) % 4096 == 0);
        runs.emplace_back(weights.offset(tensor), weights.offset(tensor) + bytes.size());
    }
    std::sort(runs.begin(), runs.end());
    for (std::size_t i = 0; i + 1 < runs.size(); i++)
        CHECK(runs[i].second <= runs[i + 1].first);
    CHECK(runs.empty() || runs.back().second == weights.block().size());
    CHECK(weights.block().size() == weights.checkpoint().load_all_bytes());
    CHECK(weights.block().size() < weights.checkpoint().info().tensor_bytes + 4096 * weights.checkpoint().shards());
}

static void weights_hold_everything() {
    const st::Checkpoint checkpoint = open_fixture(file);
    st::Weights weights = checkpoint.load_all();
    is_laid_out(weights);
    CHECK(reinterpret_cast<std::uintptr_t>(weights.block().data()) % (2 << 20) == 0);
    CHECK(weights.offset(checkpoint["a"]) == checkpoint["a"].file_offset() % 4096);
    CHECK(weights.offset(checkpoint["large"]) - weights.offset(checkpoint["a"]) == 16384);
    is_laid_out(st::Checkpoint(fixture_write_sharded("sharded", 1)).load_all());
    is_laid_out(st::Checkpoint(fixture_write("sample.safetensors", &fixture_sample)).load_all());
    const fixture none = {nullptr, 0, nullptr, 0};
    const st::Weights nothing = open_fixture(none).load_all();
    CHECK(nothing.block().empty() && nothing.checkpoint().empty());
    if (const char *model = test_setting("ST_TEST_MODEL"))
        is_laid_out(st::Checkpoint(model).load_all());
}

static void weights_are_typed() {
    const st::Weights weights = open_fixture(file).load_all();
    CHECK(weights.data<float>("a").size() == 4096 && weights.bits<std::uint16_t>("b.1").size() == 50);
    weights.data<float>("a")[0] = 1;
    CHECK(weights.data<const float>(weights.checkpoint()["a"])[0] == 1 && weights.bits<std::uint32_t>("a")[0] == 0x3f800000);
    THROWS(ST_ERR_UNSUPPORTED, "F32", weights.data<double>("a"));
    THROWS(ST_ERR_UNSUPPORTED, "32 bits", weights.bits<double>("a"));
    THROWS(ST_ERR_MISALIGNED, "\"b.0\"", weights.data<float>("b.0"));
    THROWS(ST_ERR_NOT_FOUND, "\"c\"", weights.bytes("c"));
    const st::Checkpoint other = open_sample();
    THROWS(ST_ERR_INVALID_ARGUMENT, "another checkpoint", weights.bytes(other["weight"]));
    THROWS(ST_ERR_INVALID_ARGUMENT, "another checkpoint", weights.offset(other["weight"]));
}

static void weights_lie_where_they_are_told_to() {
    const st::Checkpoint checkpoint = open_fixture(file);
    Bytes memory(checkpoint.load_all_bytes() + 4096);
    {
        const st::Weights weights = checkpoint.load_all({memory.data() + 1, memory.size() - 1});
        CHECK(weights.block().data() == memory.data() + 1);
        is_laid_out(weights);
    }
    const st::Weights places(checkpoint, {memory.data(), checkpoint.load_all_bytes()});
    const std::size_t at = places.offset(checkpoint["large"]);
    CHECK(std::memcmp(memory.data() + 1 + at, read(checkpoint["large"].slice()).data(), 1000000) == 0);
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "", checkpoint.load_all({memory.data(), checkpoint.load_all_bytes() - 1}));
    THROWS(ST_ERR_BUFFER_TOO_SMALL, "", st::Weights(checkpoint, {}));
    st::Checkpoint gone = open_sample();
    const st::Checkpoint here = std::move(gone);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", gone.load_all());
}

static void weights_can_be_watched() {
    st::Weights weights(open_fixture(file));
    st::LoadOptions options;
    options.in_order = true;
    {
        const st::Load load = weights.load(options);
        std::size_t index = 0;
        for (st::Loaded &loaded : load) {
            CHECK(loaded.tag() == index++ && loaded.tensor().index() == loaded.tag());
            CHECK(loaded.bytes().empty() || loaded.bytes().data() == weights.bytes(loaded.tensor()).data());
        }
        CHECK(index == weights.checkpoint().size());
    }
    is_laid_out(weights);
    (void)weights.load(); /* given up */
}

static void weights_that_were_moved_from() {
    st::Weights first = open_fixture(file).load_all();
    const std::byte *start = first.block().data();
    st::Weights second = std::move(first);
    CHECK(second.block().data() == start && first.block().empty());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.bytes("a"));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.offset(second.checkpoint()["a"]));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.load());
    first = open_sample().load_all();
    CHECK(first.bytes("weight").size() == SAMPLE_WEIGHT_SIZE);
    first = std::move(second);
    st::Weights &itself = first;
    first = std::move(itself);
    is_laid_out(first);
}

/* Within a limit on memory, in a process of its own. */
static void has_no_memory() {
    const std::uint64_t size = std::uint64_t(4) << 30;
    const char *path = fixture_path("huge.safetensors");
    const std::string header = R"({"huge":{"dtype":"U8","shape":[4294967296],"data_offsets":[0,4294967296]}})";
    const std::uint64_t length = header.size();
    std::string start(reinterpret_cast<const char *>(&length), 8);
    start += header;
    fixture_write_bytes(path, start.data(), start.size());
    CHECK(truncate(path, static_cast<off_t>(start.size() + size)) == 0);
    st::OpenOptions options;
    options.storage = ST_STORAGE_READ;
    const st::Checkpoint checkpoint(path, options);
    const rlimit limit = {rlim_t(1) << 30, rlim_t(1) << 30};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    THROWS(ST_ERR_NO_MEMORY, "", checkpoint.load_all());
    st::LoadOptions staged;
    staged.staging = std::size_t(2) << 30;
    THROWS(ST_ERR_NO_MEMORY, "", checkpoint.load(checkpoint, staged));
}

static void no_memory_is_told() {
    if (test_is_instrumented())
        return SKIP("memory cannot be limited");
    CHECK(test_in_child(has_no_memory) == 0);
}

static const test_case cases[] = {
    CASE(brings_everything_staged),
    CASE(brings_what_is_asked_for),
    CASE(goes_to_destinations),
    CASE(requests_say_what_they_are),
    CASE(keeps_the_order_of_the_requests),
    CASE(options_are_passed_on),
    CASE(stages_in_memory_of_the_callers),
    CASE(pieces_are_of_the_size_asked_for),
    CASE(elements_are_typed),
    CASE(wrong_requests_start_nothing),
    CASE(next_tells_of_failures_without_exceptions),
    CASE(loops_throw_what_failed_and_can_go_on),
    CASE(full_staging_memory_is_told),
    CASE(waits_no_longer_than_it_is_told_to),
    CASE(progress_ends_at_the_total),
    CASE(breaking_out_cancels_and_frees),
    CASE(cancels),
    CASE(what_was_delivered_may_go_later),
    CASE(moved_from_holds_nothing),
    CASE(several_threads_pull),
    CASE(loops_wait_for_room_that_others_hold),
    CASE(loops_that_keep_everything_find_no_room),
    CASE(loops_do_not_wait_for_their_own_thread),
    CASE(loops_wait_for_room_that_other_threads_make),
    CASE(cancel_wakes_loops_that_wait_for_room),
    CASE(what_was_delivered_goes_as_the_load_goes),
    CASE(what_was_delivered_may_go_in_another_thread),
    CASE(a_reference_of_its_own),
    CASE(buffers_are_copied),
    CASE(tensors_are_verified_when_first_used),
    CASE(weights_hold_everything),
    CASE(weights_are_typed),
    CASE(weights_lie_where_they_are_told_to),
    CASE(weights_can_be_watched),
    CASE(weights_that_were_moved_from),
    CASE(no_memory_is_told),
};

TEST_MAIN(cases)
