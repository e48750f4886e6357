// safetensors_lazy for C++17: RAII, exceptions and typed spans over safetensors_lazy.h, which says all that is not said here.
//
//     namespace st = safetensors_lazy;
//     st::Checkpoint model("model.safetensors");
//     for (st::Tensor tensor : model)
//         std::cout << tensor.name() << ' ' << tensor.nbytes() << '\n';
//     st::Span<const float> bias = model["lm_head.bias"].data<float>();
//
// Header only; no dependency but the C library. Failures are thrown as Error.
//
// LIFETIMES. A Checkpoint owns one reference to an open checkpoint. Tensors, views, spans, pointers and string_views that come from it
// are valid as long as any Checkpoint that shares it (see share) lives, and no longer; they are cheap to copy. What would dangle at
// once, such as Checkpoint(path)[name], does not compile.
//
// THREADS. All const member functions may be called from any thread at the same time.

#ifndef SAFETENSORS_LAZY_HPP
#define SAFETENSORS_LAZY_HPP

#include "safetensors_lazy.h"

#include <complex>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#if __cplusplus >= 202002L && __has_include(<ranges>)
#include <ranges>
#endif

namespace safetensors_lazy {

// What every function here throws when it fails.
class Error : public std::runtime_error {
public:
    Error(st_status status, const std::string &message, int os_error = 0)
        : std::runtime_error(message), status_(status), os_error_(os_error) {}

    // One of ST_ERR_*.
    st_status status() const noexcept { return status_; }
    // Its name, for example "ST_ERR_NOT_FOUND".
    const char *status_name() const noexcept {
        const char *name = st_status_name(status_);
        return name ? name : "?";
    }
    // errno where the operating system refused; otherwise 0.
    int os_error() const noexcept { return os_error_; }

private:
    st_status status_;
    int os_error_;
};

namespace detail {

inline void check(st_status status, const st_error &err) {
    if (status != ST_OK)
        throw Error(status, err.message, err.os_error);
}

// A name from a file, for a message of one line: control characters are escaped.
inline std::string quoted(std::string_view name) {
    const char *digits = "0123456789abcdef";
    std::string text = "\"";
    const std::string_view shown = name.substr(0, 200);
    for (char c : shown) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f)
            text += std::string("\\x") + digits[byte >> 4] + digits[byte & 15];
        else
            text += c;
    }
    return text + (shown.size() < name.size() ? "...\"" : "\"");
}

// A string for C, which ends at the first NUL: a string with one inside would mean something else there.
inline const char *c_string(const std::string &text) {
    if (text.find('\0') != std::string::npos)
        throw Error(ST_ERR_INVALID_ARGUMENT, quoted(text) + " contains a NUL");
    return text.c_str();
}

} // namespace detail

// Elements next to each other in memory: C++20's std::span, as far as it is needed here. Converts to it.
template <class T> class Span {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;

    constexpr Span() noexcept = default;
    constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

// Says which dtypes a C++ type can stand for. Specialise it for types of your own, a bfloat16 for example:
//
//     template <> struct safetensors_lazy::Element<my::bf16> : safetensors_lazy::ElementOf<ST_DTYPE_BF16> {};
//
// There is none for bool: a file may hold bytes that are neither 0 nor 1. Read BOOL as std::uint8_t.
template <class T> struct Element {
    static_assert(sizeof(T) == 0, "no dtype is known for this type: specialise safetensors_lazy::Element, or use bits");
};

template <st_dtype... Dtypes> struct ElementOf {
    static constexpr bool is(st_dtype dtype) noexcept { return ((dtype == Dtypes) || ...); }
};

template <> struct Element<float> : ElementOf<ST_DTYPE_F32> {};
template <> struct Element<double> : ElementOf<ST_DTYPE_F64> {};
template <> struct Element<std::complex<float>> : ElementOf<ST_DTYPE_C64> {};
template <> struct Element<std::int8_t> : ElementOf<ST_DTYPE_I8> {};
template <> struct Element<std::int16_t> : ElementOf<ST_DTYPE_I16> {};
template <> struct Element<std::int32_t> : ElementOf<ST_DTYPE_I32> {};
template <> struct Element<std::int64_t> : ElementOf<ST_DTYPE_I64> {};
template <> struct Element<std::uint8_t> : ElementOf<ST_DTYPE_U8, ST_DTYPE_BOOL> {};
template <> struct Element<std::uint16_t> : ElementOf<ST_DTYPE_U16> {};
template <> struct Element<std::uint32_t> : ElementOf<ST_DTYPE_U32> {};
template <> struct Element<std::uint64_t> : ElementOf<ST_DTYPE_U64> {};

// The ranges of a slice, one per dimension from the first; dimensions that are left over are taken whole.
using Ranges = std::vector<st_range>;

// A whole dimension, as a range.
inline constexpr st_range All{0, ST_END};

namespace detail {

// nbytes bytes at data, as elements of type T; throws unless T has the size of the dtype's elements and data suits its alignment.
template <class T> Span<const T> elements(const void *data, std::size_t nbytes, st_dtype dtype, std::string_view name) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool>,
                  "the bytes of a file can only become a trivial type that every value is valid for");
    if (sizeof(T) * 8 != st_dtype_bits(dtype))
        throw Error(ST_ERR_UNSUPPORTED, "tensor " + quoted(name) + " of " + st_dtype_name(dtype) + " has elements of " +
                                            std::to_string(st_dtype_bits(dtype)) + " bits, not " +
                                            std::to_string(sizeof(T) * 8));
    if (reinterpret_cast<std::uintptr_t>(data) % alignof(T) != 0)
        throw Error(ST_ERR_MISALIGNED, "tensor " + quoted(name) + " is not aligned to " + std::to_string(alignof(T)) + " bytes");
    return {static_cast<const T *>(data), nbytes / sizeof(T)};
}

template <class T> void check_dtype(st_dtype dtype, std::string_view name) {
    if (!Element<std::remove_cv_t<T>>::is(dtype))
        throw Error(ST_ERR_UNSUPPORTED, "tensor " + quoted(name) + " has the dtype " + st_dtype_name(dtype) +
                                            ", which is not that of the type asked for");
}

} // namespace detail

// A slice of a tensor in place: made by Tensor::view.
class View {
public:
    const void *data() const noexcept { return view_.data; }
    st_dtype dtype() const noexcept { return view_.dtype; }
    std::size_t rank() const noexcept { return view_.rank; }
    // Elements per dimension.
    Span<const std::uint64_t> shape() const noexcept { return {view_.shape, view_.rank}; }
    // Elements from one index to the next, per dimension.
    Span<const std::int64_t> strides() const noexcept { return {view_.strides, view_.rank}; }
    std::size_t nbytes() const noexcept { return view_.nbytes; }
    bool contiguous() const noexcept { return view_.contiguous != 0; }

    // The elements, if they are contiguous. Throws ST_ERR_NOT_CONTIGUOUS if not, ST_ERR_UNSUPPORTED if T is not the dtype's type.
    template <class T> Span<const T> data() const {
        detail::check_dtype<T>(dtype(), name_);
        if (!contiguous())
            throw Error(ST_ERR_NOT_CONTIGUOUS, "the slice of tensor " + detail::quoted(name_) + " is not contiguous");
        return detail::elements<T>(data(), nbytes(), dtype(), name_);
    }

    // The element at an index for each dimension. Throws ST_ERR_OUT_OF_RANGE outside of the slice.
    template <class T> const T &at(std::initializer_list<std::uint64_t> indices) const {
        detail::check_dtype<T>(dtype(), name_);
        bool inside = indices.size() == rank();
        std::uint64_t position = 0;
        std::size_t d = 0;
        for (std::uint64_t index : indices) {
            if (!inside || index >= view_.shape[d]) {
                inside = false;
                break;
            }
            position += index * static_cast<std::uint64_t>(view_.strides[d++]);
        }
        if (!inside)
            throw Error(ST_ERR_OUT_OF_RANGE, "the index is outside of the slice of tensor " + detail::quoted(name_));
        return detail::elements<T>(data(), sizeof(T), dtype(), name_).data()[position];
    }

    // The C struct.
    const st_view &c_view() const noexcept { return view_; }

private:
    friend class Tensor;
    View() = default;
    st_view view_{};
    std::string_view name_;
};

// A tensor of a checkpoint: what the checkpoint says about it, and the way to its bytes.
class Tensor {
public:
    std::size_t index() const noexcept { return index_; }
    std::string_view name() const noexcept { return {info_.name, info_.name_len}; }
    st_dtype dtype() const noexcept { return info_.dtype; }
    const char *dtype_name() const noexcept { return st_dtype_name(info_.dtype); }
    std::size_t rank() const noexcept { return info_.rank; }
    // Elements per dimension.
    Span<const std::uint64_t> shape() const noexcept { return {info_.shape, info_.rank}; }
    std::size_t nbytes() const noexcept { return info_.nbytes; }
    std::size_t shard() const noexcept { return info_.shard; }
    std::uint64_t file_offset() const noexcept { return info_.file_offset; }
    std::uint64_t alignment() const noexcept { return info_.alignment; }

    // Where its bytes lie: st_tensor_ptr.
    const void *data() const {
        const void *data = nullptr;
        st_error err;
        detail::check(st_tensor_ptr(handle_, index_, &data, nullptr, &err), err);
        return data;
    }

    // Its bytes.
    Span<const std::byte> bytes() const { return {static_cast<const std::byte *>(data()), nbytes()}; }

    // Its elements. Throws ST_ERR_UNSUPPORTED unless T is a type for its dtype (see Element).
    template <class T> Span<const T> data() const {
        detail::check_dtype<T>(dtype(), name());
        return bits<T>();
    }

    // Its elements as any type of their size: the 16 bits of a BF16 as std::uint16_t, for example.
    template <class T> Span<const T> bits() const {
        return detail::elements<T>(data(), nbytes(), dtype(), name());
    }

    // Its elements, to be written to. Throws ST_ERR_UNSUPPORTED unless the checkpoint was opened with ST_OPEN_COPY_ON_WRITE.
    template <class T> Span<T> mutable_data() const {
        detail::check_dtype<T>(dtype(), name());
        return mutable_bits<T>();
    }

    // As mutable_data, for any type of the elements' size.
    template <class T> Span<T> mutable_bits() const {
        st_info info{};
        st_checkpoint_info(handle_, &info);
        if (!info.writable)
            throw Error(ST_ERR_UNSUPPORTED, "tensor " + detail::quoted(name()) +
                                                " is read-only: open the checkpoint with ST_OPEN_COPY_ON_WRITE");
        Span<const T> elements = bits<T>();
        return {const_cast<T *>(elements.data()), elements.size()};
    }

    // A slice in place: st_tensor_view.
    View view(const Ranges &ranges = {}) const {
        View view;
        st_error err;
        detail::check(st_tensor_view(handle_, index_, first(ranges), ranges.size(), &view.view_, &err), err);
        view.name_ = name();
        return view;
    }

    // Copies the tensor or a slice of it to memory of the caller's: st_tensor_read.
    void read(void *dst, std::size_t dst_len, const Ranges &ranges = {}) const {
        st_error err;
        detail::check(st_tensor_read(handle_, index_, first(ranges), ranges.size(), dst, dst_len, &err), err);
    }

    // A slice as DLPack tensor: st_tensor_dlpack. The caller owns it and frees it by its deleter.
    DLManagedTensorVersioned *dlpack(const Ranges &ranges = {}) const {
        DLManagedTensorVersioned *out = nullptr;
        st_error err;
        detail::check(st_tensor_dlpack(handle_, index_, first(ranges), ranges.size(), &out, &err), err);
        return out;
    }

    // As dlpack, in the form before DLPack 1.0.
    DLManagedTensor *dlpack_unversioned(const Ranges &ranges = {}) const {
        DLManagedTensor *out = nullptr;
        st_error err;
        detail::check(st_tensor_dlpack_unversioned(handle_, index_, first(ranges), ranges.size(), &out, &err), err);
        return out;
    }

private:
    friend class Checkpoint;
    friend class Tensors;

    Tensor(st_checkpoint *handle, std::size_t index) : handle_(handle), index_(index) {
        st_error err;
        detail::check(st_tensor_info(handle, index, &info_, &err), err);
    }

    static const st_range *first(const Ranges &ranges) noexcept { return ranges.empty() ? nullptr : ranges.data(); }

    st_checkpoint *handle_;
    std::size_t index_;
    st_tensor info_{};
};

// Several tensors of a checkpoint, to be iterated over.
class Tensors {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Tensor;
        using difference_type = std::ptrdiff_t;
        using pointer = void;
        using reference = Tensor;

        Tensor operator*() const { return Tensor(handle_, indices_ ? indices_[position_] : position_); }
        iterator &operator++() noexcept {
            ++position_;
            return *this;
        }
        iterator operator++(int) noexcept {
            iterator before = *this;
            ++position_;
            return before;
        }
        bool operator==(const iterator &other) const noexcept { return position_ == other.position_; }
        bool operator!=(const iterator &other) const noexcept { return position_ != other.position_; }

    private:
        friend class Tensors;
        iterator(st_checkpoint *handle, const std::size_t *indices, std::size_t position) noexcept
            : handle_(handle), indices_(indices), position_(position) {}

        st_checkpoint *handle_;
        const std::size_t *indices_;
        std::size_t position_;
    };

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    iterator begin() const noexcept { return {handle_, indices_, 0}; }
    iterator end() const noexcept { return {handle_, indices_, size_}; }

private:
    friend class Checkpoint;
    Tensors(st_checkpoint *handle, const std::size_t *indices, std::size_t size) noexcept
        : handle_(handle), indices_(indices), size_(size) {}

    st_checkpoint *handle_;
    const std::size_t *indices_; // NULL: all tensors, in the order of their indices
    std::size_t size_;
};

// How to open a checkpoint.
struct OpenOptions {
    int32_t storage = ST_STORAGE_AUTO; // one of ST_STORAGE_*
    uint32_t flags = 0;                // ST_OPEN_*, or'ed
};

// An open checkpoint. Movable; share gives a second owner.
class Checkpoint {
public:
    // Opens a .safetensors file: st_open.
    explicit Checkpoint(const std::string &path, OpenOptions options = {}) {
        st_open_options c_options = c(options);
        st_error err;
        detail::check(st_open(detail::c_string(path), &c_options, &handle_, &err), err);
    }

    // Opens a safetensors file in memory, which must outlive the checkpoint: st_open_buffer.
    static Checkpoint from_buffer(const void *data, std::size_t len, OpenOptions options = {}) {
        st_open_options c_options = c(options);
        st_checkpoint *handle = nullptr;
        st_error err;
        detail::check(st_open_buffer(data, len, &c_options, &handle, &err), err);
        return Checkpoint(handle);
    }

    Checkpoint(const Checkpoint &) = delete;
    Checkpoint &operator=(const Checkpoint &) = delete;
    Checkpoint(Checkpoint &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Checkpoint &operator=(Checkpoint &&other) noexcept {
        if (this != &other) {
            st_close(handle_);
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    ~Checkpoint() { st_close(handle_); }

    // A second owner of the same open checkpoint, for a thread that may outlive this one.
    Checkpoint share() const { return Checkpoint(st_retain(handle_)); }

    // Number of tensors.
    std::size_t size() const noexcept { return st_len(handle_); }
    bool empty() const noexcept { return size() == 0; }

    // All tensors, in the order of their indices.
    Tensors tensors() const &noexcept { return {handle_, nullptr, size()}; }
    Tensors tensors() const && = delete;
    Tensors::iterator begin() const &noexcept { return tensors().begin(); }
    Tensors::iterator end() const &noexcept { return tensors().end(); }

    // The tensors whose names start with prefix, in byte order of the names.
    Tensors prefix(const std::string &prefix) const & {
        const std::size_t *indices = nullptr;
        std::size_t len = 0;
        if (st_status status = st_find_prefix(handle_, detail::c_string(prefix), &indices, &len); status != ST_OK)
            throw Error(status, "cannot find the prefix " + detail::quoted(prefix));
        return {handle_, indices, len};
    }
    Tensors prefix(const std::string &prefix) const && = delete;

    // The tensor of that index. Throws ST_ERR_OUT_OF_RANGE.
    Tensor at(std::size_t index) const & { return Tensor(handle_, index); }
    Tensor at(std::size_t index) const && = delete;

    // The tensor of that name. Throws ST_ERR_NOT_FOUND.
    Tensor operator[](std::string_view name) const & {
        if (std::optional<Tensor> tensor = find(name))
            return *tensor;
        throw Error(ST_ERR_NOT_FOUND, "there is no tensor " + detail::quoted(name));
    }
    Tensor operator[](std::string_view name) const && = delete;

    // The tensor of that name, if there is one.
    std::optional<Tensor> find(std::string_view name) const & {
        std::size_t index = 0;
        const st_status status = st_find_n(handle_, name.data(), name.size(), &index);
        if (status == ST_ERR_NOT_FOUND)
            return std::nullopt;
        if (status != ST_OK)
            throw Error(status, "cannot look for " + detail::quoted(name) + ": the checkpoint was moved from");
        return Tensor(handle_, index);
    }
    std::optional<Tensor> find(std::string_view name) const && = delete;

    bool contains(std::string_view name) const noexcept {
        std::size_t index = 0;
        return st_find_n(handle_, name.data(), name.size(), &index) == ST_OK;
    }

    // The metadata, as pairs of key and value in the order of the header.
    std::vector<std::pair<std::string_view, std::string_view>> metadata() const & {
        std::vector<std::pair<std::string_view, std::string_view>> entries(st_metadata_len(handle_));
        for (std::size_t i = 0; i < entries.size(); ++i) {
            const char *key = nullptr, *value = nullptr;
            st_metadata_at(handle_, i, &key, &value);
            entries[i] = {key, value};
        }
        return entries;
    }
    std::vector<std::pair<std::string_view, std::string_view>> metadata() const && = delete;

    // The metadata value of a key, if there is one.
    std::optional<std::string_view> metadata(const std::string &key) const & {
        const char *value = st_metadata_get(handle_, detail::c_string(key));
        return value ? std::optional<std::string_view>(value) : std::nullopt;
    }
    std::optional<std::string_view> metadata(const std::string &key) const && = delete;

    // Sizes, and how the checkpoint was opened.
    st_info info() const noexcept {
        st_info info{};
        st_checkpoint_info(handle_, &info);
        return info;
    }

    std::size_t shards() const noexcept { return st_shard_len(handle_); }

    // Path of a shard. Throws ST_ERR_OUT_OF_RANGE.
    std::string_view shard_path(std::size_t shard) const & {
        if (const char *path = st_shard_path(handle_, shard))
            return path;
        throw Error(ST_ERR_OUT_OF_RANGE, "there is no shard " + std::to_string(shard));
    }
    std::string_view shard_path(std::size_t shard) const && = delete;

    // The C handle: still owned by this object.
    st_checkpoint *get() const noexcept { return handle_; }

private:
    explicit Checkpoint(st_checkpoint *handle) noexcept : handle_(handle) {}

    static st_open_options c(OpenOptions options) noexcept {
        st_open_options c_options = ST_OPEN_OPTIONS_INIT;
        c_options.storage = options.storage;
        c_options.flags = options.flags;
        return c_options;
    }

    st_checkpoint *handle_ = nullptr;
};

} // namespace safetensors_lazy

#ifdef __cpp_lib_ranges
// A Span does not own its elements, so that a std::span may be made of one that is about to go.
template <class T> inline constexpr bool std::ranges::enable_borrowed_range<safetensors_lazy::Span<T>> = true;
#endif

#endif // SAFETENSORS_LAZY_HPP
