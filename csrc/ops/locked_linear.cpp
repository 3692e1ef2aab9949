// locked_linear_ and its gradients; the contract is in dartsfast/ops/locked_linear.py.
#include "locked_linear.call.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

struct Sizes {
  int64_t steps, batch, features, columns;
};

// x: inputs [T, N, H] or their gradient; y: results [N, T, V] or their gradient; weight [H, V] or its gradient.
Sizes check_arguments(const Tensor& x, const char* x_name, const Tensor& y, const char* y_name, const Tensor& mask,
                      const Tensor& weight, const char* weight_name) {
  check_ours(y, y_name);
  check(y.scalar_type() == ScalarType::Float || y.scalar_type() == ScalarType::Double, y_name,
        " must be float32 or float64");
  check_shape(y, {-1, -1, -1}, y_name);
  for (int64_t i = 0; i < 3; ++i) check(y.size(i) > 0, y_name, " must not be empty, got ", shape{y});
  check(y.is_contiguous(), y_name, " must be contiguous");
  check_like(mask, y, "mask");
  check_shape(mask, {y.size(0), -1}, "mask");
  const Sizes s = {y.size(1), y.size(0), mask.size(1), y.size(2)};
  check(s.features > 0, "mask must not be empty, got ", shape{mask});
  check(1.0 * s.steps * s.batch * std::max(s.features, s.columns) < 1e12 && 1.0 * s.features * s.columns < 1e12,
        y_name, " is too large: ", shape{y});
  check_like(x, y, x_name);
  check_shape(x, {s.steps, s.batch, s.features}, x_name);
  check_like(weight, y, weight_name);
  check_shape(weight, {s.features, s.columns}, weight_name);
  check(weight.is_contiguous(), weight_name, " must be contiguous");
  return s;
}

// No element lies where another one does.
void check_distinct(const Tensor& t, const char* name) {
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1) dimensions.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(dimensions.begin(), dimensions.end());
  int64_t least = 1;
  for (const auto& [stride, size] : dimensions) {
    check(stride >= least, name, " must not overlap with itself");
    least = stride * size;
  }
}

template <class T>
LockedLinear<T> arguments(const Sizes& s, const Tensor& x, const Tensor& mask, const Tensor& weight, const Tensor& y) {
  const auto data = [](const Tensor& t) { return const_cast<T*>(read<T>(t)); };
  return {s.steps, s.batch, s.features, s.columns, data(x), {x.stride(0), x.stride(1), x.stride(2)},
          data(mask), {mask.stride(0), mask.stride(1)}, data(weight), data(y)};
}

void locked_linear(const Tensor& out, const Tensor& x, const Tensor& mask, const Tensor& weight) {
  const Sizes s = check_arguments(x, "x", out, "out", mask, weight, "weight");
  check_apart(out, "out", {&x, &mask, &weight});
  for_dtype(out, [&](auto zero) {
    using T = decltype(zero);
    LockedLinearCall<T> call(arguments<T>(s, x, mask, weight, out));
    run_section({call.parts()});
  });
}

void locked_linear_input_gradient(const Tensor& d_x, const Tensor& g, const Tensor& mask, const Tensor& weight) {
  const Sizes s = check_arguments(d_x, "d_x", g, "g", mask, weight, "weight");
  check_distinct(d_x, "d_x");
  check_apart(d_x, "d_x", {&g, &mask, &weight});
  for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    LockedInputGradientCall<T> call(arguments<T>(s, d_x, mask, weight, g));
    run_section({call.parts()});
  });
}

void locked_linear_weight_gradient(const Tensor& d_weight, const Tensor& g, const Tensor& x, const Tensor& mask) {
  const Sizes s = check_arguments(x, "x", g, "g", mask, d_weight, "d_weight");
  check_apart(d_weight, "d_weight", {&g, &x, &mask});
  for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    LockedWeightGradientCall<T> call(arguments<T>(s, x, mask, d_weight, g));
    run_section({call.parts()});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("locked_linear_", DARTSFAST_BOX(locked_linear));
  m.impl("locked_linear_input_gradient_", DARTSFAST_BOX(locked_linear_input_gradient));
  m.impl("locked_linear_weight_gradient_", DARTSFAST_BOX(locked_linear_weight_gradient));
}

}  // namespace dartsfast
