// The header needs nothing before it, may be included twice, and is clean under warnings that its users turn on.
#include <safetensors_lazy.hpp>
#include <safetensors_lazy.hpp>

namespace st = safetensors_lazy;

#if __cplusplus >= 202002L
#include <algorithm>
#include <iterator>
#include <ranges>
#include <span>

// What the header says of C++20: spans become std::span, also unnamed ones; and tensors are a range.
static_assert(std::is_convertible_v<st::Span<const float>, std::span<const float>>);
static_assert(std::is_convertible_v<st::Span<float>, std::span<float>>);
static_assert(std::is_convertible_v<st::Span<float> &, std::span<float>>);
static_assert(std::input_iterator<st::Tensors::iterator>);
static_assert(std::ranges::input_range<const st::Tensors>);
static_assert(std::ranges::input_range<const st::Checkpoint>);
static_assert(std::input_iterator<st::Load::iterator>);
static_assert(std::ranges::input_range<const st::Load>);
#endif
