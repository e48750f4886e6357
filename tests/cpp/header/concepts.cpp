// The header needs nothing before it, may be included twice, and in C++20 its classes model the concepts of <ranges>.
#include <safetensors_lazy.hpp>
#include <safetensors_lazy.hpp>

namespace st = safetensors_lazy;

#if __cplusplus >= 202002L
#include <algorithm>
#include <iterator>
#include <ranges>
#include <span>

// Spans become std::span, also unnamed ones; and tensors are a range.
static_assert(std::is_convertible_v<st::Span<const float>, std::span<const float>>);
static_assert(std::is_convertible_v<st::Span<float>, std::span<float>>);
static_assert(std::is_convertible_v<st::Span<float> &, std::span<float>>);
static_assert(std::input_iterator<st::Tensors::iterator>);
static_assert(std::ranges::input_range<const st::Tensors>);
static_assert(std::ranges::input_range<const st::Checkpoint>);
static_assert(std::input_iterator<st::Load::iterator>);
static_assert(std::ranges::input_range<const st::Load>);
#endif
