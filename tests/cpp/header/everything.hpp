// Uses all of the header: templates are looked at when they are instantiated, and no sooner. Never run.
//
// Only the header is included here, so that each test decides what comes before it.
#include <safetensors_lazy.hpp>

// An element type of the host, whose namespace argument-dependent lookup searches.
namespace host {
struct bf16 {
    std::uint16_t bits;
};
} // namespace host

template <> struct safetensors_lazy::Element<host::bf16> : safetensors_lazy::ElementOf<ST_DTYPE_BF16> {};

namespace everything {

namespace st = safetensors_lazy;

template <class T> void use_values(const T &value) { static_cast<void>(value); }

template <class T> void use_span(st::Span<T> span) {
    use_values(span.data());
    use_values(span.size());
    use_values(span.empty());
    use_values(span.begin());
    use_values(span.end());
    use_values(span[0]);
    st::Span<const T> read_only = span;
    for (const T &element : read_only)
        use_values(element);
}

template <class Owner> void use_residency(const Owner &owner) { use_values(owner.residency()); }

inline void use_view(const st::View &view) {
    use_values(view.data());
    use_values(view.dtype());
    use_values(view.rank());
    use_values(view.shape());
    use_values(view.strides());
    use_values(view.nbytes());
    use_values(view.contiguous());
    use_values(view.bytes());
    use_values(view.c_view());
    use_values(view.data<host::bf16>());
    use_values(view.bits<host::bf16>());
    use_values(view.at<host::bf16>({1, 2}));
}

inline void use_slice(st::Slice slice) {
    use_values(slice.tensor());
    use_values(slice.ranges());
    use_values(slice.shape());
    use_values(slice.nbytes());
    use_view(slice.view());
    slice.read(nullptr, 0);
    use_values(slice.read<host::bf16>());
    use_values(slice.read_bits<host::bf16>());
    use_values(slice.dlpack());
    use_values(slice.dlpack_unversioned());
    use_values(std::move(slice).ranges());
}

inline void use_pin(st::Pin pin) {
    st::Pin other = std::move(pin);
    pin = std::move(other);
    use_values(pin.tensor());
    use_values(pin.nbytes());
    use_values(pin.data());
    use_values(pin.bytes());
    use_values(pin.data<host::bf16>());
    use_values(pin.bits<host::bf16>());
    use_view(pin.view({st::whole}));
}

inline void use_tensor(const st::Tensor &tensor) {
    use_values(tensor.index());
    use_values(tensor.name());
    use_values(tensor.dtype());
    use_values(tensor.dtype_name());
    use_values(tensor.rank());
    use_values(tensor.shape());
    use_values(tensor.nbytes());
    use_values(tensor.shard());
    use_values(tensor.file_offset());
    use_values(tensor.alignment());
    use_values(tensor.data());
    use_values(tensor.bytes());
    use_values(tensor.data<host::bf16>());
    use_values(tensor.bits<host::bf16>());
    use_span(tensor.mutable_data<host::bf16>());
    use_span(tensor.mutable_bits<host::bf16>());
    use_view(tensor.view());
    tensor.read(nullptr, 0);
    use_values(tensor.dlpack());
    use_values(tensor.dlpack_unversioned());
    use_slice(tensor.slice({st::whole, {1, ST_END}}));
    use_slice(tensor.shard(0, 1, 2));
    use_slice(tensor.layout(st_layout{}, 1));
    use_pin(tensor.pin());
    tensor.evict();
    use_residency(tensor);
}

inline void use_tensors(const st::Tensors &tensors) {
    use_values(tensors.size());
    use_values(tensors.empty());
    st::Tensors::iterator at = tensors.begin();
    use_values(at++ != tensors.end());
    use_values(++at == tensors.end());
    use_tensor(*at);
    for (const st::Tensor tensor : tensors)
        use_values(tensor);
}

inline void use_task(st::Task task) {
    st::Task other = std::move(task);
    task = std::move(other);
    use_values(task.progress());
    task.cancel();
    use_values(task.get());
}

inline void use_loaded(st::Loaded loaded) {
    st::Loaded other = std::move(loaded);
    loaded = std::move(other);
    use_values(static_cast<bool>(loaded));
    use_values(loaded.status());
    (loaded.check)();
    use_values(loaded.message());
    use_tensor(loaded.tensor());
    use_values(loaded.tag());
    use_values(loaded.request());
    use_values(loaded.offset());
    use_values(loaded.is_last());
    use_values(loaded.engine() == st::Engine::Auto);
    use_span(loaded.bytes());
    use_span(loaded.data<host::bf16>());
    use_span(loaded.bits<host::bf16>());
    loaded.recycle();
}

inline void use_load(st::Load load) {
    st::Load other = std::move(load);
    load = std::move(other);
    for (st::Loaded &loaded : load)
        use_values(loaded.tag());
    st::Load::iterator at = load.begin();
    use_values(at->tag());
    at++;
    use_values(++at == load.end());
    use_values(at != load.end());
    use_loaded(std::move(*at));
    use_loaded(*load.next());
    use_loaded(*load.next(std::chrono::milliseconds(1)));
    use_values(load.is_done());
    use_values(load.progress());
    load.cancel();
    use_values(load.get());
}

inline void use_weights(st::Weights weights, const st::Tensor &tensor) {
    st::Weights other = std::move(weights);
    weights = std::move(other);
    use_load(weights.load());
    use_values(weights.checkpoint());
    use_values(weights.block());
    use_values(weights.offset(tensor));
    use_values(weights.bytes(tensor));
    use_values(weights.bytes("name"));
    use_values(weights.data<host::bf16>(tensor));
    use_values(weights.data<host::bf16>("name"));
    use_values(weights.bits<host::bf16>(tensor));
    use_values(weights.bits<host::bf16>("name"));
}

inline void use_request(const st::Tensor &tensor) {
    st::Request request(tensor);
    std::vector<host::bf16> elements;
    const st::Span<host::bf16> span(elements.data(), elements.size());
    request.to(nullptr, 0).to(span).tag(1);
    use_values(st::Request(tensor).to(nullptr, 0));
    use_values(st::Request(tensor.slice()).to(span).tag(1));
    use_values(st::Request(tensor).to(st::Span<std::byte>()));
    use_values(request.tensor());
    use_values(request.nbytes());
}

inline void use_checkpoint(st::Checkpoint model) {
    st::Checkpoint other = std::move(model);
    model = std::move(other);
    use_values(st::Checkpoint::open("path"));
    use_values(st::Checkpoint::from_buffer(nullptr, 0));
    use_values(model.share());
    use_values(model.size());
    use_values(model.empty());
    use_tensors(model.tensors());
    use_tensors(model.prefix("prefix"));
    for (const st::Tensor tensor : model)
        use_request(tensor);
    use_values(model.begin() == model.end());
    use_values(model.at(0));
    use_values(model["name"]);
    use_values(model.find("name"));
    use_values(model.contains("name"));
    use_values(model.metadata());
    use_values(model.metadata("key"));
    use_values(model.info());
    use_values(model.shards());
    use_values(model.shard_path(0));
    model.prefetch(model.tensors());
    model.prefetch(std::vector<std::size_t>());
    model.evict(model.tensors());
    model.evict_all();
    model.set_budget(0);
    use_residency(model);
    st::Task task;
    st::VerifyOptions options;
    options.task = &task;
    const st::Verified verified = (model.verify)(options);
    use_values(static_cast<bool>(verified));
    (verified.check)();
    use_values(verified.message());
    use_values(verified.report());
    use_load(model.load(model));
    use_load(model.load(model.tensors()));
    use_load(model.load(std::vector<st::Slice>()));
    use_load(model.load({model["name"], st::Request(model["name"]).tag(1)}));
    st::LoadOptions load_options;
    load_options.staging = st::Span<std::byte>();
    use_values(load_options.staging.data());
    use_values(load_options.staging.size());
    use_weights(model.load_all(), model.at(0));
    use_weights(model.load_all(st::Span<std::byte>(), load_options), model.at(0));
    use_weights(st::Weights(model), model.at(0));
    use_weights(st::Weights(model, st::Span<std::byte>()), model.at(0));
    use_values(model.load_all_bytes());
    use_values(model.get());
}

inline void use_writer(const st::Tensor &tensor) {
    st::Writer writer("path");
    st::Writer other = std::move(writer);
    writer = std::move(other);
    writer.metadata("key", "value");
    const std::vector<host::bf16> elements;
    const float array[2] = {0, 0};
    writer.add("name", ST_DTYPE_F32, {2, 3}, nullptr, 0);
    writer.add("name", {2, 3}, elements);
    writer.add("name", tensor.shape(), array);
    writer.add("name", std::vector<std::uint64_t>(), st::Span<const float>());
    writer.add(tensor);
    writer.add("name", tensor);
    writer.declare("name", ST_DTYPE_BF16, {});
    writer.write("name", nullptr, 0);
    writer.write("name", elements);
    writer.finish();
    writer.abort();
    use_values(writer.get());
    const st::Shape shape = {1, 2};
    use_values(shape.data());
    use_values(shape.size());
}

inline void use_error(const st::Error &error) {
    use_values(error.status());
    use_values(error.status_name());
    use_values(error.os_error());
}

inline void use_all() {
    try {
        use_checkpoint(st::Checkpoint("path"));
        const st::Checkpoint model("path");
        use_tensor(model.at(0));
        use_writer(model.at(0));
        use_task(st::Task());
    } catch (const st::Error &error) {
        use_error(error);
    }
}

} // namespace everything
