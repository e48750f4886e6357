#include "throws.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

static_assert(!std::is_copy_constructible_v<st::Checkpoint> && !std::is_copy_assignable_v<st::Checkpoint>);
static_assert(std::is_nothrow_move_constructible_v<st::Checkpoint> && std::is_nothrow_move_assignable_v<st::Checkpoint>);
static_assert(!std::is_convertible_v<std::string, st::Checkpoint>, "opening a file is never implicit");

static void opens_with_every_storage() {
    for (int32_t storage : {ST_STORAGE_AUTO, ST_STORAGE_MMAP, ST_STORAGE_READ}) {
        const st::Checkpoint checkpoint = open_sample({storage, 0});
        CHECK(checkpoint.size() == SAMPLE_LEN && !checkpoint.empty());
        CHECK(storage == ST_STORAGE_AUTO || checkpoint.info().storage == storage);
        CHECK(checkpoint.info().tensor_bytes == SAMPLE_DATA_SIZE);
        CHECK(checkpoint.shards() == 1 && checkpoint.shard_path(0).find("sample.safetensors") != std::string_view::npos);
        THROWS(ST_ERR_OUT_OF_RANGE, "1", checkpoint.shard_path(1));
    }
}

static void refuses_with_the_status_of_c() {
    THROWS(ST_ERR_IO, "/nonexistent/file", st::Checkpoint("/nonexistent/file"));
    THROWS(ST_ERR_NOT_A_FILE, "/dev/null", st::Checkpoint("/dev/null"));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", open_sample({99, 0}));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", open_sample({ST_STORAGE_AUTO, 1u << 20}));
    THROWS(ST_ERR_HEADER_TOO_SMALL, "", st::Checkpoint::from_buffer(nullptr, 0));
}

static void open_is_the_constructor() {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    CHECK(st::Checkpoint::open(path).size() == SAMPLE_LEN);
    const st::Checkpoint read = st::Checkpoint::open(path, {ST_STORAGE_READ, 0, 1000});
    CHECK(read.info().storage == ST_STORAGE_READ && read.residency().budget == 1000);
    THROWS(ST_ERR_IO, "/nonexistent/file", st::Checkpoint::open("/nonexistent/file"));
}

/* A folder of two shards: "a.0" and "b.1", "a.1" and "b.0". */
static const char *write_shards() {
    static const float numbers[] = {0, 1, 2, 3, 4, 5};
    static const fixture_tensor first[] = {{"b.1", "F32", "[2]", 8, numbers}, {"a.0", "F32", "[3,2]", 24, numbers}};
    static const fixture_tensor second[] = {{"a.1", "F32", "[2]", 8, numbers + 1}, {"b.0", "F32", "[2]", 8, numbers + 2}};
    const fixture one = {first, LEN(first), nullptr, 0}, two = {second, LEN(second), nullptr, 0};
    const char *folder = fixture_path("shards");
    CHECK(mkdir(folder, 0755) == 0 || errno == EEXIST);
    fixture_write("shards/model-00001-of-00002.safetensors", &one);
    fixture_write("shards/model-00002-of-00002.safetensors", &two);
    return folder;
}

static void opens_folders() {
    const char *folder = write_shards();
    const st::Checkpoint checkpoint(folder);
    CHECK(checkpoint.shards() == 2 && checkpoint.size() == 4 && checkpoint["b.0"].shard() == 1);
    CHECK(checkpoint.shard_path(1) == std::string(folder) + "/model-00002-of-00002.safetensors");
    const char *empty = fixture_path("empty");
    CHECK(mkdir(empty, 0755) == 0);
    THROWS(ST_ERR_FOLDER_EMPTY, "", st::Checkpoint(empty));
    CHECK(remove(fixture_path("shards/model-00001-of-00002.safetensors")) == 0);
    THROWS(ST_ERR_SHARD_MISSING, "model-00001-of-00002.safetensors", st::Checkpoint(folder));
}

static void finds_prefixes_over_shards() {
    const st::Checkpoint checkpoint(write_shards());
    std::vector<std::string> names;
    std::vector<std::size_t> shards;
    for (st::Tensor tensor : checkpoint.prefix("a.")) {
        names.emplace_back(tensor.name());
        shards.push_back(tensor.shard());
        CHECK(tensor.data<float>()[1] == (tensor.shard() ? 2 : 1));
    }
    CHECK((names == std::vector<std::string>{"a.0", "a.1"}) && (shards == std::vector<std::size_t>{0, 1}));
    CHECK(checkpoint.prefix("b").size() == 2 && (*checkpoint.prefix("b").begin()).name() == "b.0");
    CHECK(checkpoint.prefix("").size() == 4 && checkpoint.prefix("c").empty());
    checkpoint.prefetch(checkpoint.prefix("a."));
    checkpoint.evict(checkpoint.prefix("b."));
    CHECK(checkpoint.prefix("b.").begin() != checkpoint.prefix("b.").end());
}

static void budget_is_kept_and_changed() {
    const st::Checkpoint checkpoint = open_sample({ST_STORAGE_READ, 0, 90});
    CHECK(checkpoint.residency().budget == 90);
    checkpoint["weight"].pin();
    checkpoint["bias"].pin();
    CHECK(checkpoint.residency().charged_bytes == 90 && checkpoint.residency().evictions == 0);
    checkpoint["odd"].pin();
    CHECK(checkpoint.residency().charged_bytes == 22 && checkpoint["weight"].residency().evictions == 1);
    THROWS(ST_ERR_BUDGET, "80", (checkpoint.set_budget(79), checkpoint["weight"].pin()));
    checkpoint.share().set_budget(11);
    CHECK(checkpoint.residency().budget == 11 && checkpoint.residency().charged_bytes == 0);
    checkpoint.set_budget(0);
    CHECK(checkpoint["weight"].pin().nbytes() == 80 && checkpoint.residency().budget == 0);
}

static void prefetches_ranges() {
    const st::Checkpoint checkpoint = open_sample(), other = open_sample();
    checkpoint.prefetch(checkpoint);
    checkpoint.prefetch(checkpoint.tensors());
    checkpoint.prefetch(std::vector<std::size_t>{SAMPLE_ODD, SAMPLE_WEIGHT});
    checkpoint.prefetch(std::vector<st::Tensor>{checkpoint["bias"], checkpoint["empty"]});
    checkpoint.share().prefetch(checkpoint.tensors());
    const std::size_t first[] = {0};
    checkpoint.prefetch(first);
    checkpoint.prefetch(std::vector<std::size_t>());
    THROWS(ST_ERR_OUT_OF_RANGE, "6", checkpoint.prefetch(std::vector<std::size_t>{0, SAMPLE_LEN}));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"weight\"", checkpoint.prefetch(other));
    CHECK(checkpoint.residency().charged_bytes == 0);
}

static void evicts_ranges() {
    const st::Checkpoint checkpoint = open_sample({ST_STORAGE_READ, 0}), other = open_sample();
    for (st::Tensor tensor : checkpoint)
        tensor.pin();
    CHECK(checkpoint.residency().charged_bytes == SAMPLE_DATA_SIZE);
    checkpoint.evict(checkpoint.prefix("b"));
    CHECK(checkpoint.residency().charged_bytes == SAMPLE_DATA_SIZE - 11);
    checkpoint.evict(std::vector<std::size_t>{SAMPLE_WEIGHT}, ST_EVICT_PAGE_CACHE);
    CHECK(checkpoint.residency().charged_bytes == SAMPLE_DATA_SIZE - 91);
    THROWS(ST_ERR_OUT_OF_RANGE, "6", checkpoint.evict(std::vector<std::size_t>{SAMPLE_LEN}));
    THROWS(ST_ERR_INVALID_ARGUMENT, "\"weight\"", checkpoint.evict(other));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", checkpoint.evict_all(1u << 20));
    {
        const st::Pin pin = checkpoint["odd"].pin();
        THROWS(ST_ERR_IN_USE, "\"odd\"", checkpoint.evict(checkpoint));
        checkpoint.evict_all();
        CHECK(checkpoint.residency().charged_bytes == SAMPLE_ODD_SIZE);
    }
    checkpoint.evict_all(ST_EVICT_PAGE_CACHE);
    CHECK(checkpoint.residency().charged_bytes == 0 && checkpoint.residency().copied_bytes == 0);
}

static void from_buffer() {
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    {
        const st::Checkpoint checkpoint = st::Checkpoint::from_buffer(bytes, len);
        CHECK(checkpoint.info().storage == ST_STORAGE_MEMORY && checkpoint.shard_path(0).empty());
        CHECK(checkpoint["weight"].data() == bytes + len - SAMPLE_DATA_SIZE);
    }
    std::free(bytes);
}

static void moves() {
    st::Checkpoint first = open_sample();
    st_checkpoint *handle = first.get();
    const void *data = first["weight"].data();
    st::Checkpoint second = std::move(first);
    CHECK(second.get() == handle && first.get() == nullptr && first.empty() && first.begin() == first.end());
    first = std::move(second);
    CHECK(first.get() == handle && first["weight"].data() == data);
    st::Checkpoint &itself = first;
    first = std::move(itself);
    CHECK(first.get() == handle && first.size() == SAMPLE_LEN);
    std::vector<st::Checkpoint> several;
    for (int i = 0; i < 5; i++)
        several.push_back(open_sample());
    CHECK(several[0].size() == SAMPLE_LEN);
}

static void moved_from_is_empty() {
    st::Checkpoint first = open_sample();
    const st::Checkpoint second = std::move(first);
    CHECK(!first.contains("weight") && first.empty() && first.metadata().empty());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.at(0));
    THROWS(ST_ERR_INVALID_ARGUMENT, "weight", first["weight"]);
    THROWS(ST_ERR_INVALID_ARGUMENT, "weight", first.find("weight"));
    CHECK(first.share().get() == nullptr);
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.residency());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.set_budget(1));
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.evict_all());
    THROWS(ST_ERR_INVALID_ARGUMENT, "", first.prefetch(std::vector<std::size_t>()));
}

/* What a temporary checkpoint would take with it cannot be asked of one. */
COMPILES(can_be_asked, std::declval<X>()["weight"]);

static void temporaries_give_nothing_that_would_dangle() {
    static_assert(can_be_asked<st::Checkpoint &>::value && can_be_asked<const st::Checkpoint &>::value, "");
    static_assert(!can_be_asked<st::Checkpoint>::value && !can_be_asked<const st::Checkpoint>::value, "");
    size_t count = 0;
    for (st::Tensor tensor : open_sample()) // lives as long as the loop
        count += tensor.index() < SAMPLE_LEN;
    CHECK(count == SAMPLE_LEN);
}

static void strings_with_a_nul_are_refused() {
    const st::Checkpoint checkpoint = open_sample();
    const std::string path = std::string(fixture_path("sample.safetensors")) + '\0' + ".txt";
    THROWS(ST_ERR_INVALID_ARGUMENT, "NUL", st::Checkpoint(path));
    THROWS(ST_ERR_INVALID_ARGUMENT, "NUL", checkpoint.prefix(std::string("b\0ias", 5)));
    THROWS(ST_ERR_INVALID_ARGUMENT, "NUL", checkpoint.metadata(std::string("format\0", 7)));
}

static void share_keeps_it_open() {
    {
        std::optional<st::Tensor> weight;
        st::Checkpoint second = [&] {
            const st::Checkpoint first = open_sample();
            weight = first["weight"];
            return first.share();
        }();
        CHECK(fixture_is(weight->data(), SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        std::thread thread([own = second.share()] {
            CHECK(fixture_is(own["odd"].data(), SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
        });
        thread.join();
    }
}

static void finds_by_name() {
    const st::Checkpoint checkpoint = open_sample();
    CHECK(checkpoint.contains("bias") && !checkpoint.contains("bia") && !checkpoint.contains(""));
    CHECK(checkpoint.find("bias")->index() == SAMPLE_BIAS && !checkpoint.find("absent"));
    CHECK(checkpoint[std::string("odd")].index() == SAMPLE_ODD);
    /* A part of a string, and no string at all. */
    CHECK(checkpoint.contains(std::string_view("biased", 4)) && !checkpoint.contains(std::string_view()));
    THROWS(ST_ERR_NOT_FOUND, "\"absent\"", checkpoint["absent"]);
    CHECK(checkpoint.at(0).name() == "weight");
    THROWS(ST_ERR_OUT_OF_RANGE, "6", checkpoint.at(SAMPLE_LEN));
}

static void finds_prefixes() {
    const st::Checkpoint checkpoint = open_sample();
    std::vector<std::string> names;
    for (st::Tensor tensor : checkpoint.prefix("b"))
        names.emplace_back(tensor.name());
    CHECK((names == std::vector<std::string>{"bias", "byte"}));
    CHECK(checkpoint.prefix("absent").empty() && checkpoint.prefix("").size() == SAMPLE_LEN);
    CHECK((*checkpoint.prefix("odd").begin()).index() == SAMPLE_ODD);
}

static void iterates_in_the_order_of_the_header() {
    const st::Checkpoint checkpoint = open_sample();
    size_t index = 0;
    for (st::Tensor tensor : checkpoint)
        CHECK(tensor.index() == index++);
    CHECK(index == SAMPLE_LEN && checkpoint.tensors().size() == SAMPLE_LEN);
    const bool has_empty = std::any_of(checkpoint.begin(), checkpoint.end(), [](const st::Tensor &t) { return t.nbytes() == 0; });
    CHECK(has_empty);
    st::Tensors::iterator at = checkpoint.begin();
    CHECK((*at++).index() == 0 && (*at).index() == 1 && at != checkpoint.begin());
}

static void tells_metadata() {
    const st::Checkpoint checkpoint = open_sample();
    const auto entries = checkpoint.metadata();
    CHECK(entries.size() == 2 && entries[0].first == "format" && entries[0].second == "pt" && entries[1].first == "made by");
    CHECK(checkpoint.metadata("format") == "pt" && !checkpoint.metadata("absent"));
}

static const test_case cases[] = {
    CASE(opens_with_every_storage),
    CASE(refuses_with_the_status_of_c),
    CASE(open_is_the_constructor),
    CASE(opens_folders),
    CASE(finds_prefixes_over_shards),
    CASE(budget_is_kept_and_changed),
    CASE(prefetches_ranges),
    CASE(evicts_ranges),
    CASE(from_buffer),
    CASE(moves),
    CASE(moved_from_is_empty),
    CASE(temporaries_give_nothing_that_would_dangle),
    CASE(strings_with_a_nul_are_refused),
    CASE(share_keeps_it_open),
    CASE(finds_by_name),
    CASE(finds_prefixes),
    CASE(iterates_in_the_order_of_the_header),
    CASE(tells_metadata),
};

TEST_MAIN(cases)
