// Compiled twice, for either ABI of libstdc++'s strings, and linked into one program: what the header defines must mean the same in
// both.
#include "throws.hpp"

#include <vector>

#if _GLIBCXX_USE_CXX11_ABI
void views_of_the_old_abi(const st::Tensor &tensor);
#define VIEWS views_of_the_new_abi
#else
#define VIEWS views_of_the_old_abi
#endif

void VIEWS(const st::Tensor &tensor);

void VIEWS(const st::Tensor &tensor) {
    const st::View first = tensor.view({{1, 3}}), second = tensor.view();
    CHECK(first.shape()[0] == 2 && second.shape()[0] == 4 && second.data<float>().size() == 20);
    THROWS(ST_ERR_UNSUPPORTED, "weight", second.data<double>());
    THROWS(ST_ERR_OUT_OF_RANGE, "weight", first.at<float>({2, 0}));
    const st::Slice rows = tensor.shard(0, 1, 2);
    CHECK(rows.shape()[0] == 2 && rows.read<float>().size() == 10);
    THROWS(ST_ERR_OUT_OF_RANGE, "weight", tensor.shard(2, 0, 1));
    const st::Pin pin = tensor.pin();
    CHECK(pin.view(rows.ranges()).data() == rows.view().data());
    THROWS(ST_ERR_UNSUPPORTED, "weight", pin.data<double>());

    st::WriterOptions options;
    options.flags = ST_WRITE_BLAKE3 | ST_WRITE_NO_SYNC;
    st::Task task;
    options.task = &task;
    st::Writer writer(fixture_path("written.safetensors"), options);
    writer.metadata("key", "value");
    writer.add(tensor);
    writer.add("rows", rows.shape(), rows.view().data<float>());
    writer.finish();
    const st::Checkpoint written(fixture_path("written.safetensors"));
    const st::Verified verified = written.verify();
    CHECK(verified && verified.message().empty() && verified.report().tensors == 2 && task.progress().items_done == 2);
    st::VerifyOptions missing;
    missing.checks = ST_CHECK_CRC;
    THROWS(ST_ERR_CHECKSUM_MISSING, "", written.verify(missing));

    std::vector<float> loaded_rows(10);
    st::LoadOptions narrow;
    narrow.staging = 1 << 16;
    const auto row = st::Request(written["rows"]).to(st::Span<float>(loaded_rows.data(), loaded_rows.size())).tag(1);
    const st::Load load = written.load({row, written[tensor.name()].slice({{0, 1}})}, narrow);
    for (const st::Loaded &loaded : load)
        CHECK(loaded && loaded.message().empty() && loaded.data<float>().size() == (loaded.tag() ? 10 : 5));
    CHECK(load.is_done() && loaded_rows[9] == rows.view().data<float>()[9]);
    const st::Weights weights = written.load_all();
    CHECK(weights.data<float>("rows")[9] == loaded_rows[9] && weights.block().size() == written.load_all_bytes());
    THROWS(ST_ERR_UNSUPPORTED, "rows", weights.data<double>("rows"));
}

#if _GLIBCXX_USE_CXX11_ABI
static void views_in_one_program() {
    const st::Checkpoint checkpoint = open_sample();
    const st::Tensor weight = checkpoint["weight"];
    views_of_the_old_abi(weight);
    views_of_the_new_abi(weight);
    views_of_the_old_abi(weight);
}

static const test_case cases[] = {
    CASE(views_in_one_program),
};

TEST_MAIN(cases)
#endif
