// safetensors_lazy for C++17: RAII, exceptions and typed spans over safetensors_lazy.h, which says all that is not said here.
//
//     namespace st = safetensors_lazy;
//     st::Checkpoint model("model.safetensors");
//     for (st::Tensor tensor : model)
//         std::cout << tensor.name() << ' ' << tensor.nbytes() << '\n';
//     st::Span<const float> bias = model["lm_head.bias"].data<float>();
//     std::vector<float> rows = model["lm_head.bias"].shard(0, rank, world).read<float>();
//     model.verify().check();
//
//     for (st::Loaded &loaded : model.load(model.prefix("model.layers.3.")))  // many at once, at the speed of the storage
//         upload(loaded.tensor().name(), loaded.offset(), loaded.bytes());
//     st::Weights weights = model.load_all();                                 // or all of it, into one block of memory
//
//     st::Writer writer("copy.safetensors");
//     writer.add("bias", {2, 3}, numbers);
//     writer.add(model["lm_head.weight"]);
//     writer.finish();
//
// Header only; no dependency but the C library. Failures are thrown as Error.
//
// LIFETIMES. A Checkpoint owns one reference to an open checkpoint. Tensors, slices, views, spans, pointers and string_views that come
// from it are valid as long as any Checkpoint that shares it (see share) lives, and no longer; they are cheap to copy. A Pin owns a
// reference too, and what comes from it is valid as long as the Pin; so with Weights. Staged bytes are valid as long as both the Loaded
// that they came with and its Load; destinations and staging memory must outlive the Load, so declare them before it. What would
// dangle at once, such as Checkpoint(path)[name], does not compile. Bytes that are given to add of a Writer are read by finish: they must
// stay as they are until it has succeeded, or the writer is gone. Tensors of a checkpoint do, for the writer takes a reference to it.
//
// THREADS. All const member functions may be called from any thread at the same time; so may write of a Writer, whose other functions want
// it for themselves.

#ifndef SAFETENSORS_LAZY_HPP
#define SAFETENSORS_LAZY_HPP

#include "safetensors_lazy.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <complex>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <thread>
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

// Throws the failure of a C function: the status that it returned, and the error that it wrote.
inline void throw_if_failed(st_status status, const st_error &err) {
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
        throw Error(ST_ERR_INVALID_ARGUMENT, detail::quoted(text) + " contains a NUL");
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
    // Elements that may be written to are also elements that may be read.
    template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
    constexpr Span(const Span<U> &other) noexcept : data_(other.data()), size_(other.size()) {}

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
//
// If there are several, the first is what a Writer writes the type as.
template <class T> struct Element {
    static_assert(sizeof(T) == 0, "no dtype is known for this type: specialise safetensors_lazy::Element, or use bits");
};

template <st_dtype First, st_dtype... Others> struct ElementOf {
    static constexpr st_dtype dtype = First;
    static constexpr bool is(st_dtype other) noexcept { return other == First || ((other == Others) || ...); }
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
inline constexpr st_range whole{0, ST_END};

namespace detail {

// Throws unless T has the size of the dtype's elements.
template <class T> void check_size(st_dtype dtype, std::string_view name) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool>,
                  "the bytes of a file can only become a trivial type that every value is valid for");
    if (sizeof(T) * 8 != st_dtype_bits(dtype))
        throw Error(ST_ERR_UNSUPPORTED, "tensor " + detail::quoted(name) + " of " + st_dtype_name(dtype) + " has elements of " +
                                            std::to_string(st_dtype_bits(dtype)) + " bits, not " +
                                            std::to_string(sizeof(T) * 8));
}

// nbytes bytes at data, as elements of type T; throws unless T has the size of the dtype's elements and data suits its alignment.
template <class T> Span<const T> elements(const void *data, std::size_t nbytes, st_dtype dtype, std::string_view name) {
    detail::check_size<T>(dtype, name);
    if (reinterpret_cast<std::uintptr_t>(data) % alignof(T) != 0)
        throw Error(ST_ERR_MISALIGNED, "tensor " + detail::quoted(name) + " is not aligned to " + std::to_string(alignof(T)) + " bytes");
    return {static_cast<const T *>(data), nbytes / sizeof(T)};
}

template <class T> void check_dtype(st_dtype dtype, std::string_view name) {
    if (!Element<std::remove_cv_t<T>>::is(dtype))
        throw Error(ST_ERR_UNSUPPORTED, "tensor " + detail::quoted(name) + " has the dtype " + st_dtype_name(dtype) +
                                            ", which is not that of the type asked for");
}

inline st_residency_info residency(const st_checkpoint *handle, std::size_t index) {
    st_residency_info info{};
    st_error err;
    detail::throw_if_failed(st_residency(handle, index, &info, &err), err);
    return info;
}

inline void evict(st_checkpoint *handle, std::size_t index, std::uint32_t flags) {
    st_error err;
    detail::throw_if_failed(st_evict(handle, index, flags, &err), err);
}

} // namespace detail

// A slice of a tensor in place: made by view of a Tensor, a Slice or a Pin.
class View {
public:
    const void *data() const noexcept { return view_.data; }
    st_dtype dtype() const noexcept { return view_.dtype; }
    std::size_t rank() const noexcept { return view_.rank; }
    // Elements per dimension.
    Span<const std::uint64_t> shape() const &noexcept { return {view_.shape, view_.rank}; }
    Span<const std::uint64_t> shape() const && = delete;
    // Elements from one index to the next, per dimension.
    Span<const std::int64_t> strides() const &noexcept { return {view_.strides, view_.rank}; }
    Span<const std::int64_t> strides() const && = delete;
    std::size_t nbytes() const noexcept { return view_.nbytes; }
    bool contiguous() const noexcept { return view_.contiguous != 0; }

    // The bytes of the elements, if they are contiguous. Throws ST_ERR_NOT_CONTIGUOUS if not.
    Span<const std::byte> bytes() const {
        if (!contiguous())
            throw Error(ST_ERR_NOT_CONTIGUOUS, "the slice of tensor " + detail::quoted(name_) + " is not contiguous");
        return {static_cast<const std::byte *>(data()), nbytes()};
    }

    // The elements, if they are contiguous. Throws ST_ERR_NOT_CONTIGUOUS if not, ST_ERR_UNSUPPORTED if T is not the dtype's type.
    template <class T> Span<const T> data() const {
        detail::check_dtype<T>(dtype(), name_);
        return bits<T>();
    }

    // As data, for any type of the elements' size.
    template <class T> Span<const T> bits() const {
        return detail::elements<T>(bytes().data(), nbytes(), dtype(), name_);
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
    const st_view &c_view() const &noexcept { return view_; }
    const st_view &c_view() const && = delete;

private:
    friend class Tensor;
    friend class Pin;
    View() = default;
    st_view view_{};
    std::string_view name_;
};

class Slice;
class Pin;

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
    // The file that it lies in: see Checkpoint::shard_path.
    std::size_t shard() const noexcept { return info_.shard; }
    std::uint64_t file_offset() const noexcept { return info_.file_offset; }
    std::uint64_t alignment() const noexcept { return info_.alignment; }

    // Where its bytes lie: st_tensor_ptr.
    const void *data() const {
        const void *data = nullptr;
        st_error err;
        detail::throw_if_failed(st_tensor_ptr(handle_, index_, &data, nullptr, &err), err);
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
        detail::throw_if_failed(st_tensor_view(handle_, index_, first(ranges), ranges.size(), &view.view_, &err), err);
        view.name_ = name();
        return view;
    }

    // Copies the tensor or a slice of it to memory of the caller's: st_tensor_read.
    void read(void *dst, std::size_t dst_len, const Ranges &ranges = {}) const {
        st_error err;
        detail::throw_if_failed(st_tensor_read(handle_, index_, first(ranges), ranges.size(), dst, dst_len, &err), err);
    }

    // A slice as DLPack tensor: st_tensor_dlpack. The caller owns it and frees it by its deleter.
    DLManagedTensorVersioned *dlpack(const Ranges &ranges = {}) const {
        DLManagedTensorVersioned *out = nullptr;
        st_error err;
        detail::throw_if_failed(st_tensor_dlpack(handle_, index_, first(ranges), ranges.size(), &out, &err), err);
        return out;
    }

    // As dlpack, in the form before DLPack 1.0.
    DLManagedTensor *dlpack_unversioned(const Ranges &ranges = {}) const {
        DLManagedTensor *out = nullptr;
        st_error err;
        detail::throw_if_failed(st_tensor_dlpack_unversioned(handle_, index_, first(ranges), ranges.size(), &out, &err), err);
        return out;
    }

    // A part of it, to be asked about before it is reached. Ranges that are wrong throw here, as they do from view.
    Slice slice(Ranges ranges = {}) const;

    // What a rank has of it where a dimension is split over the ranks of a world: st_split_range. Throws ST_ERR_OUT_OF_RANGE if there
    // is no such dimension or rank. (The shard of a rank, not the file that shard() tells.)
    Slice shard(std::size_t dim, std::uint32_t rank, std::uint32_t world) const;

    // What a rank has of it by a layout of MindSpore's: st_layout_ranges.
    Slice layout(const st_layout &layout, std::uint32_t rank_id) const;

    // Holds it in memory: st_acquire. Throws ST_ERR_BUDGET if it does not fit beside what is pinned.
    Pin pin() const;

    // Takes it out of memory: st_evict. flags: 0 or ST_EVICT_PAGE_CACHE. Throws ST_ERR_IN_USE if it is pinned.
    void evict(std::uint32_t flags = 0) const { detail::evict(handle_, index_, flags); }

    // What is in memory of it: st_residency.
    st_residency_info residency() const { return detail::residency(handle_, index_); }

private:
    friend class Checkpoint;
    friend class Tensors;
    friend class Slice;
    friend class Pin;
    friend class Request;
    friend class Loaded;
    friend class Writer;

    Tensor() = default; // none: what a Pin has that was moved from
    Tensor(st_checkpoint *handle, std::size_t index) : handle_(handle), index_(index) {
        st_error err;
        detail::throw_if_failed(st_tensor_info(handle, index, &info_, &err), err);
    }

    static const st_range *first(const Ranges &ranges) noexcept { return ranges.empty() ? nullptr : ranges.data(); }

    // For functions whose errors cannot name the tensor.
    void throw_if_failed(st_status status, const st_error &err) const {
        if (status != ST_OK)
            throw Error(status, "tensor " + detail::quoted(name()) + ": " + err.message, err.os_error);
    }

    st_checkpoint *handle_ = nullptr;
    std::size_t index_ = 0;
    st_tensor info_{};
};

// A part of a tensor, known to lie inside of it: made by slice, shard or layout of a Tensor. Nothing is read before it is asked to.
class Slice {
public:
    // The tensor that it is a part of.
    Tensor tensor() const noexcept { return tensor_; }
    // One range per dimension of the tensor, without ST_END.
    const Ranges &ranges() const &noexcept { return ranges_; }
    Ranges ranges() && noexcept { return std::move(ranges_); }
    // Elements per dimension.
    Span<const std::uint64_t> shape() const &noexcept { return {shape_.data(), shape_.size()}; }
    Span<const std::uint64_t> shape() const && = delete;
    // Size of its elements in bytes.
    std::size_t nbytes() const noexcept { return nbytes_; }

    // It, in place: Tensor::view.
    View view() const { return tensor_.view(ranges_); }

    // Copies it, packed, to memory of the caller's: Tensor::read.
    void read(void *dst, std::size_t dst_len) const { tensor_.read(dst, dst_len, ranges_); }

    // A packed copy of its elements. Throws ST_ERR_UNSUPPORTED unless T is a type for the dtype (see Element).
    template <class T> std::vector<T> read() const {
        detail::check_dtype<T>(tensor_.dtype(), tensor_.name());
        return read_bits<T>();
    }

    // As read, for any type of the elements' size.
    template <class T> std::vector<T> read_bits() const {
        detail::check_size<T>(tensor_.dtype(), tensor_.name());
        std::vector<T> elements(nbytes_ / sizeof(T));
        read(elements.data(), nbytes_);
        return elements;
    }

    // It as DLPack tensor: Tensor::dlpack, Tensor::dlpack_unversioned.
    DLManagedTensorVersioned *dlpack() const { return tensor_.dlpack(ranges_); }
    DLManagedTensor *dlpack_unversioned() const { return tensor_.dlpack_unversioned(ranges_); }

private:
    friend class Tensor;

    Slice(const Tensor &tensor, Ranges ranges) : tensor_(tensor), ranges_(std::move(ranges)) {
        // The rules for ranges are the library's: a read into no room applies them, and ends before it reads.
        st_error err;
        const st_status status =
            st_tensor_read(tensor_.handle_, tensor_.index_, Tensor::first(ranges_), ranges_.size(), nullptr, 0, &err);
        if (status != ST_ERR_BUFFER_TOO_SMALL)
            detail::throw_if_failed(status, err);
        ranges_.resize(tensor_.rank(), whole);
        shape_.reserve(tensor_.rank());
        std::uint64_t elements = 1; // of a part of the tensor, or 0: this fits
        for (std::size_t d = 0; d < ranges_.size(); ++d) {
            if (ranges_[d].stop == ST_END)
                ranges_[d].stop = tensor_.shape()[d];
            shape_.push_back(ranges_[d].stop - ranges_[d].start);
            elements *= shape_[d];
        }
        nbytes_ = elements * st_dtype_bits(tensor_.dtype()) / 8;
    }

    Tensor tensor_;
    Ranges ranges_;
    std::vector<std::uint64_t> shape_;
    std::size_t nbytes_ = 0;
};

// A tensor that is held in memory until the Pin goes, with a reference of its own to the checkpoint: made by Tensor::pin. Movable;
// what was moved from holds nothing.
class Pin {
public:
    Pin(const Pin &) = delete;
    Pin &operator=(const Pin &) = delete;
    Pin(Pin &&other) noexcept
        : tensor_(std::exchange(other.tensor_, Tensor())), data_(std::exchange(other.data_, nullptr)) {}
    Pin &operator=(Pin &&other) noexcept {
        if (this != &other) {
            release();
            tensor_ = std::exchange(other.tensor_, Tensor());
            data_ = std::exchange(other.data_, nullptr);
        }
        return *this;
    }
    ~Pin() { release(); }

    // The tensor: its name, dtype and shape.
    const Tensor &tensor() const &noexcept { return tensor_; }
    const Tensor &tensor() const && = delete;
    std::size_t nbytes() const noexcept { return tensor_.nbytes(); }

    // Where its bytes lie; NULL if it was moved from.
    const void *data() const &noexcept { return data_; }
    const void *data() const && = delete;

    // Its bytes.
    Span<const std::byte> bytes() const &noexcept { return {static_cast<const std::byte *>(data_), nbytes()}; }
    Span<const std::byte> bytes() const && = delete;

    // Its elements: as of a Tensor.
    template <class T> Span<const T> data() const & {
        detail::check_dtype<T>(checked().dtype(), tensor_.name());
        return bits<T>();
    }
    template <class T> Span<const T> data() const && = delete;
    template <class T> Span<const T> bits() const & {
        return detail::elements<T>(data_, nbytes(), checked().dtype(), tensor_.name());
    }
    template <class T> Span<const T> bits() const && = delete;

    // A slice in place, inside of what is held: unlike that of a Tensor it never makes a copy that stays.
    View view(const Ranges &ranges = {}) const & {
        const Slice slice = checked().slice(ranges);
        if (tensor_.rank() > ST_MAX_RANK)
            throw Error(ST_ERR_UNSUPPORTED, "tensor " + detail::quoted(tensor_.name()) + " has " + std::to_string(tensor_.rank()) +
                                                " dimensions, more than a view can hold");
        View view;
        view.name_ = tensor_.name();
        st_view &out = view.view_;
        out.dtype = tensor_.dtype();
        out.rank = static_cast<std::uint32_t>(tensor_.rank());
        out.nbytes = slice.nbytes();
        out.contiguous = 1;
        // From the last dimension on: the distance of neighbours in the tensor, and what it would be without gaps.
        std::uint64_t first = 0, stride = 1, packed = 1;
        for (std::size_t d = tensor_.rank(); d-- > 0;) {
            out.shape[d] = slice.shape()[d];
            out.strides[d] = static_cast<std::int64_t>(stride);
            if (out.shape[d] > 1 && stride != packed)
                out.contiguous = 0;
            first += slice.ranges()[d].start * stride;
            stride *= tensor_.shape()[d];
            packed *= out.shape[d];
        }
        if (out.nbytes == 0) {
            out.contiguous = 1;
            first = 0;
        }
        out.data = static_cast<const std::byte *>(data_) + first * st_dtype_bits(out.dtype) / 8;
        return view;
    }
    View view(const Ranges &ranges = {}) const && = delete;

private:
    friend class Tensor;

    explicit Pin(const Tensor &tensor) : tensor_(tensor) {
        st_error err;
        detail::throw_if_failed(st_acquire(tensor_.handle_, tensor_.index_, &data_, nullptr, &err), err);
        st_retain(tensor_.handle_);
    }

    void release() noexcept {
        if (data_) {
            st_release(tensor_.handle_, tensor_.index_, nullptr);
            st_close(tensor_.handle_);
        }
    }

    const Tensor &checked() const {
        if (!data_)
            throw Error(ST_ERR_INVALID_ARGUMENT, "the pin was moved from");
        return tensor_;
    }

    Tensor tensor_;
    const void *data_ = nullptr;
};

inline Slice Tensor::slice(Ranges ranges) const { return {*this, std::move(ranges)}; }

inline Slice Tensor::shard(std::size_t dim, std::uint32_t rank, std::uint32_t world) const {
    if (dim >= shape().size())
        throw Error(ST_ERR_OUT_OF_RANGE, "tensor " + detail::quoted(name()) + " has no dimension " + std::to_string(dim));
    Ranges ranges(dim + 1, whole);
    st_error err;
    throw_if_failed(st_split_range(shape()[dim], rank, world, &ranges[dim], &err), err);
    return slice(std::move(ranges));
}

inline Slice Tensor::layout(const st_layout &layout, std::uint32_t rank_id) const {
    Ranges ranges(rank());
    st_error err;
    throw_if_failed(st_layout_ranges(&layout, info_.shape, info_.rank, rank_id, ranges.data(), &err), err);
    return slice(std::move(ranges));
}

inline Pin Tensor::pin() const { return Pin(*this); }

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

        iterator() noexcept = default; // of no range; std::ranges asks for it

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

        st_checkpoint *handle_ = nullptr;
        const std::size_t *indices_ = nullptr;
        std::size_t position_ = 0;
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

// A long call as other threads see it: how far it is, and a way to end it early. Give it to Checkpoint::verify or to a Writer, in their
// options. Movable; what was moved from watches nothing, and cancels nothing.
class Task {
public:
    Task() {
        st_error err;
        detail::throw_if_failed(st_task_new(&handle_, &err), err);
    }

    Task(const Task &) = delete;
    Task &operator=(const Task &) = delete;
    Task(Task &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Task &operator=(Task &&other) noexcept {
        if (this != &other) {
            st_task_free(handle_);
            handle_ = std::exchange(other.handle_, nullptr);
        }
        return *this;
    }
    ~Task() { st_task_free(handle_); }

    // How far the call is: before, while and after it runs. All zero before, and of what was moved from.
    st_progress progress() const noexcept {
        st_progress progress{};
        st_task_progress(handle_, &progress);
        return progress;
    }

    // Lets the call throw ST_ERR_CANCELLED soon, and each later call with this task too.
    void cancel() const noexcept { st_task_cancel(handle_); }

    // The C handle: still owned by this object.
    st_task *get() const noexcept { return handle_; }

private:
    st_task *handle_ = nullptr;
};

// How to open a checkpoint.
struct OpenOptions {
    int32_t storage = ST_STORAGE_AUTO; // one of ST_STORAGE_*
    uint32_t flags = 0;                // ST_OPEN_*, or'ed
    uint64_t budget = 0;               // the most bytes of tensors to hold in memory; 0 for no limit
    int32_t verify = ST_VERIFY_NONE;   // one of ST_VERIFY_*
};

// What to verify of a checkpoint, and how.
struct VerifyOptions {
    uint32_t checks = 0;  // ST_CHECK_*, or'ed: kinds that every shard must have; 0: whatever each has, at least one
    uint32_t flags = 0;   // ST_VERIFY_AROUND_CACHE, or 0
    uint32_t workers = 0; // the most threads; 0 leaves the number to the library
    std::vector<const char *> sha256; // of each shard's file: 64 hexadecimal digits; NULL for those that are not known
    const Task *task = nullptr;       // watches verify, and cancels it
};

// What Checkpoint::verify found. It has to be looked at: damage is no exception before check makes it one.
class [[nodiscard]] Verified {
public:
    // Whether everything that was verified is as it should be.
    explicit operator bool() const noexcept { return status_ == ST_OK; }

    // Throws ST_ERR_CHECKSUM_MISMATCH if something is not.
    void (check)() const { detail::throw_if_failed(status_, err_); }

    // Names the first tensor, or file, that is damaged; "" if there is none.
    std::string_view message() const &noexcept { return status_ == ST_OK ? "" : err_.message; }
    std::string_view message() const && = delete;

    // In numbers: what was verified, and what of it is damaged.
    const st_verify_report &report() const &noexcept { return report_; }
    st_verify_report report() const &&noexcept { return report_; }

private:
    friend class Checkpoint;
    Verified() = default;
    st_status status_ = ST_OK;
    st_verify_report report_{};
    st_error err_{};
};

// What reads: see ST_ENGINE_AUTO.
enum class Engine : std::int32_t {
    Auto = ST_ENGINE_AUTO,         // whichever is best, for each part of each file
    Memory = ST_ENGINE_MEMORY,     // copies out of memory that was given to Checkpoint::from_buffer
    Buffered = ST_ENGINE_BUFFERED, // through the page cache
    Direct = ST_ENGINE_DIRECT,     // around the page cache, one read at a time by each thread
    Uring = ST_ENGINE_URING,       // around the page cache, many at once by each thread
};

// Memory for what is staged: so many bytes of the library's own, or memory of the caller's, which must outlive the load.
//
//     options.staging = 64 << 20;
//     options.staging = Span<std::byte>(pinned, size);
class Staging {
public:
    // 256 MiB of the library's own.
    Staging() noexcept = default;
    // So many bytes of the library's own; 0 is 256 MiB.
    Staging(std::size_t nbytes) noexcept : memory_(nullptr, nbytes) {}
    // These, which should be aligned to 4096. Throws ST_ERR_INVALID_ARGUMENT if there are none.
    Staging(Span<std::byte> memory) : memory_(memory) {
        if (!memory.data() || memory.empty())
            throw Error(ST_ERR_INVALID_ARGUMENT, "the staging memory is empty");
    }

    // The caller's memory; NULL if it is to be the library's own.
    void *data() const noexcept { return memory_.data(); }
    std::size_t size() const noexcept { return memory_.size(); }

private:
    Span<std::byte> memory_;
};

// How to load. 0 leaves a number to the library.
struct LoadOptions {
    Engine engine = Engine::Auto; // the only one to use, where the system and the file let it
    bool in_order = false;        // deliver in the order of the requests, not in that of the files
    uint32_t workers = 0;         // the most threads that read
    uint32_t queue_depth = 0;     // the most reads that are under way at once around the page cache
    std::size_t block_bytes = 0;  // the most bytes of one read: a multiple of 4096 from 64 KiB to 64 MiB
    Staging staging;              // where requests without a destination go
    std::size_t piece_bytes = 0;  // the most bytes of a staged request that are delivered at once; 0: what the staging memory holds
    uint32_t over_read = 0;       // gaps to be read through, in percent of what is wanted; 0 is 10, ST_OVER_READ_NONE is none
};

// A tensor or a slice to load, and where to: staged, if it is not said.
//
//     model.load({model["bias"], Request(model["weight"].shard(0, rank, world)).to(rows, sizeof(rows)).tag(7)});
class Request {
public:
    Request(const Tensor &tensor) noexcept : tensor_(tensor), nbytes_(tensor.nbytes()) {}
    Request(Slice slice) noexcept : tensor_(slice.tensor()), ranges_(std::move(slice).ranges()), nbytes_(slice.nbytes()) {}

    // Lets the bytes go, packed, to memory of the caller's: st_request.dst, which says what makes it fast. Nobody else may touch it until
    // the request was delivered or its Load is gone. Throws ST_ERR_INVALID_ARGUMENT if it is NULL and there are bytes to go there; that it
    // is too small is noticed by Checkpoint::load.
    Request &to(void *dst, std::size_t dst_len) & {
        if (!dst && nbytes_ > 0)
            throw Error(ST_ERR_INVALID_ARGUMENT, "the destination of tensor " + detail::quoted(tensor_.name()) + " is NULL");
        dst_ = dst;
        dst_len_ = dst_len;
        return *this;
    }
    Request to(void *dst, std::size_t dst_len) && { return std::move(to(dst, dst_len)); }

    // The same, for bytes, or elements of a type for the dtype (see Element). Throws ST_ERR_UNSUPPORTED if T is neither.
    template <class T> Request &to(Span<T> dst) & {
        static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>, "a load writes the bytes of a trivial type");
        if constexpr (!std::is_same_v<T, std::byte>)
            detail::check_dtype<T>(tensor_.dtype(), tensor_.name());
        return to(dst.data(), dst.size() * sizeof(T));
    }
    template <class T> Request to(Span<T> dst) && { return std::move(to(dst)); }

    // Gives it a number, which Loaded::tag tells.
    Request &tag(std::uint64_t tag) &noexcept {
        tag_ = tag;
        return *this;
    }
    Request tag(std::uint64_t tag) &&noexcept {
        tag_ = tag;
        return std::move(*this);
    }

    // The tensor that it is of.
    Tensor tensor() const noexcept { return tensor_; }
    // The bytes that will come.
    std::size_t nbytes() const noexcept { return nbytes_; }

private:
    friend class Checkpoint;

    // Valid as long as the request.
    st_request c() const noexcept {
        return {tensor_.index_, Tensor::first(ranges_), ranges_.size(), dst_, dst_len_, tag_};
    }

    Tensor tensor_;
    Ranges ranges_; // none: all of it
    std::size_t nbytes_;
    void *dst_ = nullptr;
    std::size_t dst_len_ = 0;
    std::uint64_t tag_ = 0;
};

namespace detail {

// Whether a range has requests one beside the other in memory, as a vector has: these need not be copied.
template <class Range, class = void> inline constexpr bool are_requests = false;
template <class Range>
inline constexpr bool are_requests<Range, std::void_t<decltype(std::data(std::declval<Range &>())), decltype(std::size(std::declval<Range &>()))>> =
    std::is_same_v<std::remove_cv_t<std::remove_pointer_t<decltype(std::data(std::declval<Range &>()))>>, Request>;

// A load, as it is known to what it has delivered, which may go later, and to loops over it.
class Running {
public:
    Running(st_checkpoint *checkpoint, bool with_staging) noexcept : source(st_retain(checkpoint)), stages(with_staging) {}
    Running(const Running &) = delete;
    Running &operator=(const Running &) = delete;
    ~Running() {
        free();
        st_close(source);
    }

    void free() noexcept {
        std::unique_lock<std::mutex> lock(mutex_);
        st_load *const freed = std::exchange(handle, nullptr);
        lock.unlock();
        st_load_free(freed);
    }

    bool is_free() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        return !handle;
    }

    // Hands staged memory back, unless that went with the load.
    void recycle(const st_loaded &loaded) noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (handle)
            st_load_recycle(handle, &loaded, nullptr);
        has_changed();
    }

    void cancel() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        st_load_cancel(handle);
        has_changed();
    }

    // A loop that waits for something, or holds it: where there is no room for more, others wait for it.
    class Loop {
    public:
        explicit Loop(Running &running) : running_(running) {
            const std::lock_guard<std::mutex> lock(running_.mutex_);
            running_.loops_.push_back(std::this_thread::get_id());
            thread_ = running_.loops_.back();
        }
        Loop(const Loop &) = delete;
        Loop &operator=(const Loop &) = delete;
        ~Loop() {
            const std::lock_guard<std::mutex> lock(running_.mutex_);
            std::vector<std::thread::id> &loops = running_.loops_;
            loops.erase(std::find(loops.begin(), loops.end(), thread_));
            running_.has_changed();
        }

    private:
        Running &running_;
        std::thread::id thread_;
    };

    // Counts what may have made room.
    std::uint64_t changes() noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        return changes_;
    }

    // For a loop that has found no room since then: waits for a change. False if none will come of loops, because all of them wait, but
    // for those in which this thread is.
    bool wait_for_room(std::uint64_t since) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (changes_ != since)
            return true;
        const auto own = std::count(loops_.begin(), loops_.end(), std::this_thread::get_id());
        // More than there are: a loop of a thread that waits was ended by another.
        if (waiting_ + own >= static_cast<std::ptrdiff_t>(loops_.size()))
            return false;
        waiting_ += own;
        // Not for ever, because of those who recycle by the C handle.
        changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return changes_ != since; });
        waiting_ -= own;
        return true;
    }

    st_load *handle = nullptr; // NULL: the load has gone, or has not begun
    st_checkpoint *const source;
    const bool stages; // some request has no destination: only then can loops have to wait for one another
    std::atomic<bool> done{false};

private:
    void has_changed() noexcept {
        ++changes_;
        changed_.notify_all();
    }

    std::mutex mutex_; // of the handle, when it goes, and of what follows
    std::condition_variable changed_;
    std::uint64_t changes_ = 0;
    std::vector<std::thread::id> loops_; // the threads that have begun them
    std::ptrdiff_t waiting_ = 0;         // loops of threads that wait
};

} // namespace detail

// A request, or a piece of one, that a Load has delivered, or that has failed. As long as it lives it holds the staged memory that its
// bytes lie in, if they do: let it go, or recycle it, so that more can be read. May be used, and go, in any thread. Movable; what was moved
// from holds nothing.
class [[nodiscard]] Loaded {
public:
    Loaded(const Loaded &) = delete;
    Loaded &operator=(const Loaded &) = delete;
    Loaded(Loaded &&other) noexcept
        : load_(std::move(other.load_)), loaded_(other.loaded_), err_(std::move(other.err_)), recycled_(other.recycled_) {}
    Loaded &operator=(Loaded &&other) noexcept {
        if (this != &other) {
            recycle();
            load_ = std::move(other.load_);
            loaded_ = other.loaded_;
            err_ = std::move(other.err_);
            recycled_ = other.recycled_;
        }
        return *this;
    }
    ~Loaded() { recycle(); }

    // Whether it has arrived, and was not moved from. What has failed comes only from Load::next: a loop over a Load throws.
    explicit operator bool() const noexcept { return load_ && loaded_.status == ST_OK; }
    // ST_OK, or why it failed.
    st_status status() const noexcept { return loaded_.status; }
    // Throws that, if it failed.
    void (check)() const {
        if (loaded_.status != ST_OK)
            throw Error(loaded_.status, err_ ? err_->message : "", err_ ? err_->os_error : 0);
    }
    // Why it failed, in words; "" if it has not, or was moved from.
    std::string_view message() const &noexcept { return err_ ? err_->message : ""; }
    std::string_view message() const && = delete;

    // The tensor that it is of. Throws ST_ERR_INVALID_ARGUMENT if this was moved from.
    Tensor tensor() const { return Tensor(load_ ? load_->source : nullptr, loaded_.index); }
    // The request's tag.
    std::uint64_t tag() const noexcept { return loaded_.tag; }
    // The request's place among those of the load.
    std::size_t request() const noexcept { return loaded_.request; }
    // Where the bytes start in the request: not 0 only for pieces.
    std::uint64_t offset() const noexcept { return loaded_.offset; }
    // Whether no more of the request will come. Always so where it is not in pieces; of which all come, also after one that has failed.
    bool is_last() const noexcept { return loaded_.last != 0; }
    // What read it.
    Engine engine() const noexcept { return Engine(loaded_.engine); }

    // The bytes: at the request's destination, or staged. They may be read and written; staged ones until this goes, or its Load. Throws
    // why it failed, if it has, and ST_ERR_INVALID_ARGUMENT if the bytes are not there any more.
    Span<std::byte> bytes() const & {
        const st_loaded &loaded = checked();
        return {static_cast<std::byte *>(loaded.data), loaded.nbytes};
    }
    Span<std::byte> bytes() const && = delete;

    // The elements of a tensor, or of a slice, packed. Throws as bytes, ST_ERR_UNSUPPORTED if it came in pieces, or unless T is a type for
    // the dtype (see Element), and ST_ERR_MISALIGNED if it does not lie as T must.
    template <class T> Span<T> data() const & {
        checked();
        detail::check_dtype<T>(tensor().dtype(), tensor().name());
        return bits<T>();
    }
    template <class T> Span<T> data() const && = delete;

    // As data, for any type of the elements' size.
    template <class T> Span<T> bits() const & {
        const Span<std::byte> all = bytes();
        if (loaded_.offset != 0 || !is_last())
            throw Error(ST_ERR_UNSUPPORTED, "tensor " + detail::quoted(tensor().name()) + " comes in pieces, which have bytes only");
        const Span<const T> elements = detail::elements<T>(all.data(), all.size(), tensor().dtype(), tensor().name());
        return {const_cast<T *>(elements.data()), elements.size()};
    }
    template <class T> Span<T> bits() const && = delete;

    // Hands staged memory back, now rather than when this goes. The bytes must not be touched any more. Without staged memory it does
    // nothing.
    void recycle() noexcept {
        if (!load_ || loaded_.buffer == 0)
            return;
        load_->recycle(loaded_);
        loaded_.buffer = 0;
        recycled_ = true;
    }

private:
    friend class Load;

    Loaded(std::shared_ptr<detail::Running> load, const st_loaded &loaded, const st_error &err)
        : load_(std::move(load)), loaded_(loaded), err_(loaded.status == ST_OK ? nullptr : std::make_unique<st_error>(err)) {}

    bool is_staged() const noexcept { return loaded_.buffer != 0; }

    const st_loaded &checked() const {
        if (!load_)
            throw Error(ST_ERR_INVALID_ARGUMENT, "what was loaded was moved from");
        (check)();
        if (recycled_)
            throw Error(ST_ERR_INVALID_ARGUMENT, "the bytes of tensor " + detail::quoted(tensor().name()) + " were handed back");
        if (loaded_.buffer != 0 && load_->is_free())
            throw Error(ST_ERR_INVALID_ARGUMENT, "the bytes went with their load");
        return loaded_;
    }

    std::shared_ptr<detail::Running> load_;
    st_loaded loaded_{};
    std::unique_ptr<st_error> err_; // none: it has arrived
    bool recycled_ = false;
};

// A load that is running: made by load of a Checkpoint, or of Weights. To be iterated over, once:
//
//     for (Loaded &loaded : load)                                      // throws at the first that fails
//         use(loaded.tensor(), loaded.offset(), loaded.bytes());       // handed back when the loop goes on; std::move(loaded) keeps it
//
// (A tensor that is larger than the staging memory, or than LoadOptions::piece_bytes, comes in pieces, from offset() on; one with a
// destination never does.) Or to be asked for one after the other, which tells of failures without an exception:
//
//     while (std::optional<Loaded> loaded = load.next())
//         if (*loaded)
//             ...
//
// Either from any number of threads at once: each request, or piece, goes to one of them. Where staged memory is full of what others hold,
// loops wait for other loops to go on; with next, pass a timeout, which waits for anybody. When it goes it is cancelled, waits for the
// reads that are under way, and frees its staging memory. It owns a reference to the checkpoint. Movable, while nobody else uses it; what
// was moved from has nothing to deliver.
class Load {
public:
    // An input iterator. Copies of it share their place.
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Loaded;
        using difference_type = std::ptrdiff_t;
        using pointer = Loaded *;
        using reference = Loaded &;

        iterator() noexcept = default; // the end

        Loaded &operator*() const noexcept { return *place_->loaded; }
        Loaded *operator->() const noexcept { return &*place_->loaded; }
        // Hands back what it was at, unless that was moved away, and waits for the next. Throws as next, and why a request failed; after
        // that the load goes on, and can be iterated over anew (but not after ST_ERR_CANCELLED, which every loop throws from then on).
        iterator &operator++() {
            Place &place = *place_;
            place.let_go(); // the room may be needed
            if (place.load && place.load->stages)
                place.loop.emplace(*place.load);
            try {
                place.loaded = Load::next_of_loop(place.load);
                if (place.loaded)
                    (place.loaded->check)();
            } catch (...) {
                place.let_go();
                throw;
            }
            if (!place.loaded || !place.loaded->is_staged())
                place.loop.reset();
            return *this;
        }
        void operator++(int) { ++*this; }
        bool operator==(const iterator &other) const noexcept {
            return is_end() == other.is_end() && (is_end() || place_ == other.place_);
        }
        bool operator!=(const iterator &other) const noexcept { return !(*this == other); }

    private:
        friend class Load;

        struct Place {
            explicit Place(std::shared_ptr<detail::Running> of) noexcept : load(std::move(of)) {}

            void let_go() noexcept {
                loaded.reset(); // first, so that there is room when others hear of it
                loop.reset();
            }

            std::shared_ptr<detail::Running> load;
            std::optional<detail::Running::Loop> loop; // as long as it waits, and as long as others may have to wait for it
            std::optional<Loaded> loaded;
        };

        explicit iterator(std::shared_ptr<detail::Running> load) : place_(std::make_shared<Place>(std::move(load))) {}
        bool is_end() const noexcept { return !place_ || !place_->loaded; }

        std::shared_ptr<Place> place_;
    };

    Load(const Load &) = delete;
    Load &operator=(const Load &) = delete;
    Load(Load &&) noexcept = default;
    Load &operator=(Load &&other) noexcept {
        if (this != &other) {
            free();
            load_ = std::move(other.load_);
        }
        return *this;
    }
    ~Load() { free(); }

    // Waits for the first. Throws as ++ of the iterator.
    iterator begin() const & {
        iterator first(load_);
        return ++first;
    }
    iterator begin() const && = delete;
    iterator end() const noexcept { return {}; }

    // Waits for the next request, or piece of one, to arrive or to fail; none if everything was delivered. Throws ST_ERR_CANCELLED after
    // cancel, and ST_ERR_STAGING_FULL if nothing can arrive before something that was delivered is let go, in whichever thread.
    std::optional<Loaded> next() const { return next_of(load_, -1); }

    // The same, for so long at most: none also if nothing has arrived in time (see is_done), full staging memory included.
    std::optional<Loaded> next(std::chrono::milliseconds timeout) const {
        return next_of(load_, (std::max<std::int64_t>)(timeout.count(), 0));
    }

    // Whether everything was delivered, and next found that out.
    bool is_done() const noexcept { return !load_ || load_->done; }

    // How far it is. All zero of what was moved from.
    st_progress progress() const noexcept {
        st_progress progress{};
        if (load_)
            st_load_progress(load_->handle, &progress);
        return progress;
    }

    // Ends it early: st_load_cancel. Every next throws ST_ERR_CANCELLED from now on; staged bytes stay until the load goes.
    void cancel() const noexcept {
        if (load_)
            load_->cancel();
    }

    // The C handle: still owned by this object.
    st_load *get() const noexcept { return load_ ? load_->handle : nullptr; }

private:
    friend class Checkpoint;

    explicit Load(std::shared_ptr<detail::Running> load) noexcept : load_(std::move(load)) {}

    static std::optional<Loaded> next_of(const std::shared_ptr<detail::Running> &load, std::int64_t timeout_ms) {
        st_loaded loaded{};
        st_error err;
        const st_status status = st_load_next(load ? load->handle : nullptr, timeout_ms, &loaded, &err);
        if (status == ST_DONE)
            load->done = true;
        if (status == ST_DONE || status == ST_TIMEOUT)
            return std::nullopt;
        if (status != ST_OK && (!load || loaded.request == ST_ALL))
            throw Error(status, err.message, err.os_error);
        return Loaded(load, loaded, err);
    }

    static std::optional<Loaded> next_of_loop(const std::shared_ptr<detail::Running> &load) {
        if (!load || !load->stages)
            return next_of(load, -1);
        while (true) {
            const std::uint64_t changes = load->changes();
            try {
                return next_of(load, -1);
            } catch (const Error &error) {
                if (error.status() != ST_ERR_STAGING_FULL || !load->wait_for_room(changes))
                    throw;
            }
        }
    }

    void free() noexcept {
        if (load_)
            load_->free();
    }

    std::shared_ptr<detail::Running> load_;
};

class Weights;

// An open checkpoint. Movable; share gives a second owner.
class Checkpoint {
public:
    // Opens a .safetensors file, an index, or a folder of shards: st_open.
    explicit Checkpoint(const std::string &path, OpenOptions options = {}) {
        st_open_options c_options = c(options);
        st_error err;
        detail::throw_if_failed(st_open(detail::c_string(path), &c_options, &handle_, &err), err);
    }

    // The same, by name.
    static Checkpoint open(const std::string &path, OpenOptions options = {}) { return Checkpoint(path, options); }

    // Opens a safetensors file in memory, which must outlive the checkpoint: st_open_buffer.
    static Checkpoint from_buffer(const void *data, std::size_t len, OpenOptions options = {}) {
        st_open_options c_options = c(options);
        st_checkpoint *handle = nullptr;
        st_error err;
        detail::throw_if_failed(st_open_buffer(data, len, &c_options, &handle, &err), err);
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

    // The metadata, as pairs of key and value in the order of the headers.
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

    // Starts to read tensors into the page cache: st_prefetch. They are a range of Tensor, such as prefix gives, or of indices.
    template <class Range> void prefetch(const Range &tensors) const {
        std::vector<std::size_t> indices;
        for (auto &&tensor : tensors)
            indices.push_back(index_of(tensor));
        st_error err;
        detail::throw_if_failed(st_prefetch(handle_, indices.data(), indices.size(), &err), err);
    }

    // Takes tensors out of memory, one after the other: st_evict. Throws ST_ERR_IN_USE at the first that is pinned.
    // flags: 0 or ST_EVICT_PAGE_CACHE.
    template <class Range> void evict(const Range &tensors, std::uint32_t flags = 0) const {
        for (auto &&tensor : tensors)
            detail::evict(handle_, index_of(tensor), flags);
    }

    // Takes all tensors out of memory that are not pinned.
    void evict_all(std::uint32_t flags = 0) const { detail::evict(handle_, ST_ALL, flags); }

    // Changes the budget, for all who share the checkpoint: st_set_budget. 0 is none.
    void set_budget(std::uint64_t bytes) const {
        st_error err;
        detail::throw_if_failed(st_set_budget(handle_, bytes, &err), err);
    }

    // What is in memory of all tensors: st_residency.
    st_residency_info residency() const { return detail::residency(handle_, ST_ALL); }

    // Reads all tensors and compares them with the checksums that the checkpoint has, and with those of the options: st_verify. That
    // they do not match is told by the result; everything else is thrown, such as ST_ERR_CHECKSUM_MISSING.
    Verified (verify)(const VerifyOptions &options = {}) const {
        st_verify_options c_options = ST_VERIFY_OPTIONS_INIT;
        c_options.checks = options.checks;
        c_options.flags = options.flags;
        c_options.workers = options.workers;
        c_options.sha256 = options.sha256.data();
        c_options.sha256_len = options.sha256.size();
        c_options.task = options.task ? options.task->get() : nullptr;
        Verified verified;
        verified.status_ = st_verify(handle_, &c_options, &verified.report_, &verified.err_);
        if (verified.status_ != ST_ERR_CHECKSUM_MISMATCH)
            detail::throw_if_failed(verified.status_, verified.err_);
        return verified;
    }

    // Starts to load many tensors, or slices, and returns: st_load_start. Ask for everything that is wanted at once. requests: any range of
    // Request, Tensor and Slice of this checkpoint, such as prefix gives, or the checkpoint itself for all of it; or a list of them in
    // braces. They may go when this returns; their destinations, and the staging memory of the options, must outlive the load.
    //
    // Throws, before anything is started, ST_ERR_BUFFER_TOO_SMALL for a destination, ST_ERR_NO_MEMORY, and ST_ERR_INVALID_ARGUMENT for
    // options that the library does not know, destinations that overlap, and tensors of another checkpoint.
    template <class Requests> Load load(Requests &&requests, const LoadOptions &options = {}) const & {
        if constexpr (detail::are_requests<Requests>) {
            return load_kept({std::data(requests), std::size(requests)}, options);
        } else {
            std::vector<Request> kept;
            for (auto &&request : requests) {
                static_assert(std::is_constructible_v<Request, decltype(request)>, "what can be loaded is a Request, a Tensor, or a Slice");
                kept.emplace_back(std::forward<decltype(request)>(request));
            }
            return load_kept({kept.data(), kept.size()}, options);
        }
    }
    template <class Requests> Load load(Requests &&requests, const LoadOptions &options = {}) const && = delete;
    Load load(std::initializer_list<Request> requests, const LoadOptions &options = {}) const & {
        return load_kept({requests.begin(), requests.size()}, options);
    }
    Load load(std::initializer_list<Request> requests, const LoadOptions &options = {}) const && = delete;

    // Loads all tensors into one block of memory, and returns when they are there. See Weights for how they lie; and for loading them while
    // this thread does something else. Throws as load, and why the first request failed that did; then the memory is free again.
    Weights load_all(const LoadOptions &options = {}) const;

    // The same, into memory of the caller's, of load_all_bytes() or more, which must outlive the weights. It should be aligned to 4096, so
    // that nothing has to be copied, and in huge pages (MADV_HUGEPAGE). Throws ST_ERR_BUFFER_TOO_SMALL.
    Weights load_all(Span<std::byte> into, const LoadOptions &options = {}) const;

    // The size of that block: of all tensors, and less than 4096 bytes for each file.
    std::size_t load_all_bytes() const;

    // The C handle: still owned by this object.
    st_checkpoint *get() const noexcept { return handle_; }

private:
    friend class Weights;

    explicit Checkpoint(st_checkpoint *handle) noexcept : handle_(handle) {}

    static st_open_options c(OpenOptions options) noexcept {
        st_open_options c_options = ST_OPEN_OPTIONS_INIT;
        c_options.storage = options.storage;
        c_options.flags = options.flags;
        c_options.budget = options.budget;
        c_options.verify = options.verify;
        return c_options;
    }

    std::size_t index_of(const Tensor &tensor) const {
        if (tensor.handle_ != handle_)
            throw Error(ST_ERR_INVALID_ARGUMENT, "tensor " + detail::quoted(tensor.name()) + " is of another checkpoint");
        return tensor.index_;
    }
    static std::size_t index_of(std::size_t index) noexcept { return index; }

    Load load_kept(Span<const Request> requests, const LoadOptions &options) const {
        std::vector<st_request> c_requests;
        c_requests.reserve(requests.size());
        for (const Request &request : requests) {
            index_of(request.tensor_); // of this checkpoint
            c_requests.push_back(request.c());
        }
        st_load_options c_options = ST_LOAD_OPTIONS_INIT;
        c_options.flags = options.in_order ? ST_LOAD_IN_ORDER : 0;
        c_options.engine = static_cast<std::int32_t>(options.engine);
        c_options.workers = options.workers;
        c_options.queue_depth = options.queue_depth;
        c_options.block_bytes = options.block_bytes;
        c_options.staging = options.staging.data();
        c_options.staging_bytes = options.staging.size();
        c_options.piece_bytes = options.piece_bytes;
        c_options.over_read = options.over_read;
        const bool stages = std::any_of(c_requests.begin(), c_requests.end(), [](const st_request &it) { return !it.dst; });
        auto running = std::make_shared<detail::Running>(handle_, stages); // before there is a load that it could fail to own
        st_error err;
        detail::throw_if_failed(st_load_start(handle_, c_requests.data(), c_requests.size(), &c_options, &running->handle, &err), err);
        return Load(std::move(running));
    }

    st_checkpoint *handle_ = nullptr;
};

// All tensors of a checkpoint in one block of memory: made by Checkpoint::load_all; or by itself, to be filled while this thread does
// something else:
//
//     Weights weights(model);                          // room for them, and nothing in it yet
//     for (Loaded &loaded : weights.load())            // a Load, which must go before the weights
//         std::cout << loaded.tensor().name() << '\n';
//     weights.data<float>("lm_head.weight");
//
// Each file lies in the block as on the disk, without its header, and begins where the address of its first tensor is the tensor's offset in
// the file, modulo 4096; and so are those of all others then. That is what reads around the page cache need to go there without a copy
// (st_request.dst); and neighbours stay neighbours, so that one large read brings many. The files follow each other in the order of the
// shards.
//
// Owns a reference to the checkpoint. Movable; what was moved from holds nothing.
class Weights {
public:
    // With memory of its own, in huge pages where there are any. Throws ST_ERR_NO_MEMORY.
    explicit Weights(const Checkpoint &checkpoint) : Weights(checkpoint, Layout(checkpoint)) {
        memory_ = pages(block_.size());
        block_ = {memory_.get(), block_.size()};
    }

    // In memory of the caller's, which must outlive it: see Checkpoint::load_all. Throws ST_ERR_BUFFER_TOO_SMALL.
    Weights(const Checkpoint &checkpoint, Span<std::byte> into) : Weights(checkpoint, Layout(checkpoint)) {
        if (into.size() < block_.size())
            throw Error(ST_ERR_BUFFER_TOO_SMALL, "the tensors need " + std::to_string(block_.size()) + " bytes in a block, and there are " +
                                                     std::to_string(into.size()));
        block_ = {into.data(), block_.size()};
    }

    Weights(const Weights &) = delete;
    Weights &operator=(const Weights &) = delete;
    Weights(Weights &&other) noexcept
        : checkpoint_(std::move(other.checkpoint_)), shifts_(std::exchange(other.shifts_, {})), memory_(std::move(other.memory_)),
          block_(std::exchange(other.block_, {})) {}
    Weights &operator=(Weights &&other) noexcept {
        if (this != &other) {
            checkpoint_ = std::move(other.checkpoint_);
            shifts_ = std::exchange(other.shifts_, {});
            memory_ = std::move(other.memory_);
            block_ = std::exchange(other.block_, {});
        }
        return *this;
    }

    // Starts to load all tensors to their places, and returns; each has its index as tag. The load must go before the weights, and before
    // they are moved from or assigned to. Throws as Checkpoint::load. Staging memory is not needed.
    Load load(const LoadOptions &options = {}) const & {
        std::vector<Request> requests;
        requests.reserve(checkpoint_.size());
        for (const Tensor tensor : checkpoint_)
            requests.push_back(Request(tensor).to(bytes(tensor)).tag(tensor.index()));
        return checkpoint_.load(requests, options);
    }
    Load load(const LoadOptions &options = {}) const && = delete;

    // The checkpoint, for names, shapes and dtypes.
    const Checkpoint &checkpoint() const &noexcept { return checkpoint_; }
    const Checkpoint &checkpoint() const && = delete;

    // All of the memory. What lies before the first tensor, and between the files, is of no matter.
    Span<std::byte> block() const &noexcept { return block_; }
    Span<std::byte> block() const && = delete;

    // Where a tensor begins in the block. Throws ST_ERR_INVALID_ARGUMENT for a tensor of another checkpoint.
    std::size_t offset(const Tensor &tensor) const {
        checkpoint_.index_of(tensor);
        return static_cast<std::size_t>(shifts_[tensor.shard()] + tensor.file_offset());
    }

    // The bytes of a tensor, given itself or its name. They may be read and written when they have been loaded. Throws ST_ERR_NOT_FOUND.
    Span<std::byte> bytes(const Tensor &tensor) const & { return {block_.data() + offset(tensor), tensor.nbytes()}; }
    Span<std::byte> bytes(const Tensor &tensor) const && = delete;
    Span<std::byte> bytes(std::string_view name) const & { return bytes(checkpoint_[name]); }
    Span<std::byte> bytes(std::string_view name) const && = delete;

    // Its elements. Throws ST_ERR_UNSUPPORTED unless T is a type for its dtype (see Element), and ST_ERR_MISALIGNED if it does not lie as T
    // must, in the file and so here.
    template <class T> Span<T> data(const Tensor &tensor) const & {
        detail::check_dtype<T>(tensor.dtype(), tensor.name());
        return bits<T>(tensor);
    }
    template <class T> Span<T> data(const Tensor &tensor) const && = delete;
    template <class T> Span<T> data(std::string_view name) const & { return data<T>(checkpoint_[name]); }
    template <class T> Span<T> data(std::string_view name) const && = delete;

    // As data, for any type of the elements' size.
    template <class T> Span<T> bits(const Tensor &tensor) const & {
        const Span<std::byte> all = bytes(tensor);
        const Span<const T> elements = detail::elements<T>(all.data(), all.size(), tensor.dtype(), tensor.name());
        return {const_cast<T *>(elements.data()), elements.size()};
    }
    template <class T> Span<T> bits(const Tensor &tensor) const && = delete;
    template <class T> Span<T> bits(std::string_view name) const & { return bits<T>(checkpoint_[name]); }
    template <class T> Span<T> bits(std::string_view name) const && = delete;

private:
    friend class Checkpoint;

    static constexpr std::size_t huge_page = std::size_t(2) << 20;

    // Where the tensors lie.
    struct Layout {
        explicit Layout(const Checkpoint &checkpoint) : shifts(checkpoint.shards(), UINT64_MAX) {
            std::vector<std::uint64_t> ends(shifts.size());
            for (const Tensor tensor : checkpoint) {
                shifts[tensor.shard()] = (std::min)(shifts[tensor.shard()], tensor.file_offset());
                ends[tensor.shard()] = (std::max)(ends[tensor.shard()], tensor.file_offset() + tensor.nbytes());
            }
            std::uint64_t end = 0;
            for (std::size_t shard = 0; shard < shifts.size(); ++shard) {
                const std::uint64_t first = shifts[shard];
                if (first == UINT64_MAX)
                    continue; // it has no tensors
                const std::uint64_t at = end + (first - end) % 4096; // the first place that suits
                shifts[shard] = at - first;
                if (ends[shard] - first > SIZE_MAX / 2 - at)
                    throw Error(ST_ERR_NO_MEMORY, "there is no memory of the size of all tensors");
                end = at + (ends[shard] - first);
            }
            nbytes = static_cast<std::size_t>(end);
        }

        std::vector<std::uint64_t> shifts; // per shard: what is to be added to offsets in the file, modulo 2^64
        std::size_t nbytes = 0;
    };

    struct Unmap {
        std::size_t nbytes;
        void operator()(std::byte *start) const noexcept { ::munmap(start, nbytes); }
    };
    using Memory = std::unique_ptr<std::byte, Unmap>;

    // Whole pages, which the system fills with zeros when they are touched, aligned so that all of them may be huge.
    static Memory pages(std::size_t nbytes) {
        constexpr std::size_t page = 64 << 10; // the largest that Linux has
        nbytes = ((std::max<std::size_t>)(nbytes, 1) + page - 1) / page * page;
        const std::size_t room = nbytes + huge_page;
        void *mapped = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED)
            throw Error(ST_ERR_NO_MEMORY, "there is no memory for " + std::to_string(nbytes) + " bytes of tensors", errno);
        std::byte *const first = static_cast<std::byte *>(mapped);
        const std::size_t before = (huge_page - reinterpret_cast<std::uintptr_t>(mapped) % huge_page) % huge_page;
        if (before > 0)
            ::munmap(first, before);
        ::munmap(first + before + nbytes, huge_page - before);
        ::madvise(first + before, nbytes, MADV_HUGEPAGE); // as well as it can
        return Memory(first + before, Unmap{nbytes});
    }

    // Without memory: the block has its size only.
    Weights(const Checkpoint &checkpoint, Layout layout)
        : checkpoint_(checkpoint.share()), shifts_(std::move(layout.shifts)), memory_(nullptr, Unmap{0}), block_(nullptr, layout.nbytes) {}

    // Loads all, and waits.
    Weights filled(const LoadOptions &options) && {
        for (const Loaded &loaded : load(options))
            static_cast<void>(loaded);
        return std::move(*this);
    }

    Checkpoint checkpoint_;
    std::vector<std::uint64_t> shifts_;
    Memory memory_;
    Span<std::byte> block_;
};

inline Weights Checkpoint::load_all(const LoadOptions &options) const { return Weights(*this).filled(options); }

inline Weights Checkpoint::load_all(Span<std::byte> into, const LoadOptions &options) const {
    return Weights(*this, into).filled(options);
}

inline std::size_t Checkpoint::load_all_bytes() const { return Weights::Layout(*this).nbytes; }

// Elements per dimension, as a Writer is told them: {2, 3}, {} for a scalar, a vector, or the shape of a tensor.
class Shape {
public:
    Shape(std::initializer_list<std::uint64_t> lengths) : lengths_(lengths) {}
    Shape(std::vector<std::uint64_t> lengths) noexcept : lengths_(std::move(lengths)) {}
    Shape(Span<const std::uint64_t> lengths) : lengths_(lengths.begin(), lengths.end()) {}

    const std::uint64_t *data() const noexcept { return lengths_.data(); }
    std::size_t size() const noexcept { return lengths_.size(); }

private:
    std::vector<std::uint64_t> lengths_;
};

namespace detail {

// The type of the elements of what has them next to each other: an array, a vector, a Span. Of anything else it is none.
template <class Elements>
using element_of = std::remove_cv_t<std::remove_pointer_t<decltype(std::data(std::declval<std::remove_reference_t<Elements> &>()))>>;

// Whether elements stay when the object goes through which an argument of type Elements&& reaches them: it is no temporary, or a view.
template <class Elements> inline constexpr bool stays = std::is_lvalue_reference_v<Elements>;
template <class T> inline constexpr bool stays<Span<T>> = true;
template <class T> inline constexpr bool stays<const Span<T>> = true;
#ifdef __cpp_lib_ranges
template <class Elements>
    requires std::ranges::borrowed_range<Elements>
inline constexpr bool stays<Elements> = true;
#endif

} // namespace detail

// How to write a checkpoint.
struct WriterOptions {
    uint32_t flags = 0;           // ST_WRITE_*, or'ed
    uint32_t alignment = 0;       // of the first tensor in the file: a power of two from 8 to 65536; 0 is 8
    uint64_t max_shard_bytes = 0; // 0: one file; otherwise the most bytes of tensors in a shard
    const Task *task = nullptr;   // watches finish, and cancels it; the writer holds a reference of its own
};

// A checkpoint that is being written: st_writer_open. Nothing is seen of it before finish succeeds; if the writer goes without that, what
// was at the path stays. Movable; what was moved from, or has finished, is empty, and all it can do is to go.
class Writer {
public:
    explicit Writer(const std::string &path, const WriterOptions &options = {}) {
        st_writer_options c_options = ST_WRITER_OPTIONS_INIT;
        c_options.flags = options.flags;
        c_options.alignment = options.alignment;
        c_options.max_shard_bytes = options.max_shard_bytes;
        c_options.task = options.task ? options.task->get() : nullptr;
        st_error err;
        detail::throw_if_failed(st_writer_open(detail::c_string(path), &c_options, &handle_, &err), err);
    }

    Writer(const Writer &) = delete;
    Writer &operator=(const Writer &) = delete;
    Writer(Writer &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), sources_(std::exchange(other.sources_, {})) {}
    Writer &operator=(Writer &&other) noexcept {
        if (this != &other) {
            abort();
            handle_ = std::exchange(other.handle_, nullptr);
            sources_ = std::exchange(other.sources_, {});
        }
        return *this;
    }
    ~Writer() { abort(); }

    // Adds an entry to the metadata: st_writer_metadata.
    void metadata(std::string_view key, std::string_view value) {
        const std::string c_key(key), c_value(value);
        st_error err;
        detail::throw_if_failed(st_writer_metadata(handle_, detail::c_string(c_key), detail::c_string(c_value), &err), err);
    }

    // Adds a tensor whose bytes are all in memory: st_writer_add. They must stay there unchanged until finish has succeeded or the
    // writer is gone.
    void add(std::string_view name, st_dtype dtype, const Shape &shape, const void *data, std::size_t nbytes) {
        const std::string c_name(name);
        st_error err;
        detail::throw_if_failed(st_writer_add(handle_, detail::c_string(c_name), dtype, shape.data(), shape.size(), data, nbytes, &err), err);
    }

    // The same, of a vector, an array or a Span, with the dtype of their type (see Element). They must stay, too; a temporary vector
    // would not.
    template <class Elements, class T = detail::element_of<Elements>, class = std::enable_if_t<detail::stays<Elements>>>
    void add(std::string_view name, const Shape &shape, Elements &&elements) {
        static_assert(std::is_trivially_copyable_v<T>, "only the bytes of a trivial type mean something in a file");
        add(name, Element<T>::dtype, shape, std::data(elements), std::size(elements) * sizeof(T));
    }
    template <class Elements, class = detail::element_of<Elements>, std::enable_if_t<!detail::stays<Elements>, int> = 0>
    void add(std::string_view name, const Shape &shape, Elements &&elements) = delete;

    // Adds a tensor of a checkpoint, or the same under another name: what Tensor::data points to. The writer holds a reference to the
    // checkpoint, so that it may go, or be written over by this one. (Not to a buffer that it is in: that must stay.)
    void add(const Tensor &tensor) { add(tensor.name(), tensor); }
    void add(std::string_view name, const Tensor &tensor) {
        const void *data = tensor.data();
        hold(tensor.handle_);
        add(name, tensor.dtype(), tensor.shape(), data, tensor.nbytes());
    }

    // Announces a tensor whose bytes write will bring: st_writer_declare.
    void declare(std::string_view name, st_dtype dtype, const Shape &shape) {
        const std::string c_name(name);
        st_error err;
        detail::throw_if_failed(st_writer_declare(handle_, detail::c_string(c_name), dtype, shape.data(), shape.size(), &err), err);
    }

    // Writes the next bytes of a tensor that was declared: st_writer_write. They may go afterwards; nothing can be added or declared any
    // more.
    void write(std::string_view name, const void *data, std::size_t nbytes) {
        const std::string c_name(name);
        st_error err;
        detail::throw_if_failed(st_writer_write(handle_, detail::c_string(c_name), data, nbytes, &err), err);
    }

    // The same, of a vector, an array or a Span. It is their bytes that are written, whatever dtype was declared.
    template <class Elements, class T = detail::element_of<Elements>> void write(std::string_view name, const Elements &elements) {
        static_assert(std::is_trivially_copyable_v<T>, "only the bytes of a trivial type mean something in a file");
        write(name, std::data(elements), std::size(elements) * sizeof(T));
    }

    // Writes what is left and puts the checkpoint in its place: st_writer_finish. Then the writer is empty. If this throws it is not,
    // and this may be called again when the cause is mended.
    void finish() {
        st_error err;
        detail::throw_if_failed(st_writer_finish(handle_, &err), err);
        handle_ = nullptr;
        abort();
    }

    // Gives up, now rather than when the writer goes. What was at the path stays.
    void abort() noexcept {
        st_writer_abort(std::exchange(handle_, nullptr)); // before the bytes go that it may still point to
        for (st_checkpoint *source : std::exchange(sources_, {}))
            st_close(source);
    }

    // The C handle: still owned by this object.
    st_writer *get() const noexcept { return handle_; }

private:
    // Takes a reference to a checkpoint, unless there is one.
    void hold(st_checkpoint *source) {
        for (const st_checkpoint *held : sources_)
            if (held == source)
                return;
        sources_.push_back(source);
        st_retain(source);
    }

    st_writer *handle_ = nullptr;
    std::vector<st_checkpoint *> sources_;
};

} // namespace safetensors_lazy

#ifdef __cpp_lib_ranges
// A Span does not own its elements, so that a std::span may be made of one that is about to go.
template <class T> inline constexpr bool std::ranges::enable_borrowed_range<safetensors_lazy::Span<T>> = true;
#endif

#endif // SAFETENSORS_LAZY_HPP
