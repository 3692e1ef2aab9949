// locked_linear_ and its gradients; the contract is in dartsfast/ops/locked_linear.py.
#include "../locked_linear.h"

#include <algorithm>

#include "kernels.h"
#include "packing.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

constexpr int64_t kOutColumns = 1024, kWeightColumns = 512;  // of a part
constexpr int64_t kSteps = 36;                               // of a part of the inputs' gradient

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

// The features of batch element n that dropout left.
template <class T>
std::vector<int64_t> kept(const Tensor& mask, int64_t n) {
  const T* row = static_cast<const T*>(mask.const_data_ptr()) + n * mask.stride(0);
  std::vector<int64_t> features;
  for (int64_t k = 0; k < mask.size(1); ++k) {
    if (row[k * mask.stride(1)] != 0) features.push_back(k);
  }
  return features;
}

// x * mask [T, features] of batch element n.
template <class T>
std::vector<T> masked(const Tensor& x, const Tensor& mask, int64_t n, const std::vector<int64_t>& features) {
  const T* row = static_cast<const T*>(x.const_data_ptr()) + n * x.stride(1);
  const T* factor = static_cast<const T*>(mask.const_data_ptr()) + n * mask.stride(0);
  std::vector<T> values;
  values.reserve(x.size(0) * features.size());
  for (int64_t t = 0; t < x.size(0); ++t, row += x.stride(0)) {
    for (int64_t k : features) values.push_back(row[k * x.stride(2)] * factor[k * mask.stride(1)]);
  }
  return values;
}

// The inputs of a batch element that dropout left.
template <class T>
struct Kept {
  std::vector<int64_t> features;
  std::vector<T> values;  // [T, features]

  Kept(const Tensor& x, const Tensor& mask, int64_t n)
      : features(kept<T>(mask, n)), values(masked<T>(x, mask, n, features)) {}
};

template <class T>
std::vector<Kept<T>> all_kept(const Tensor& x, const Tensor& mask) {
  std::vector<Kept<T>> all;
  for (int64_t n = 0; n < mask.size(0); ++n) all.emplace_back(x, mask, n);
  return all;
}

// Rows `indices` of a matrix.
template <class T>
std::vector<T*> rows(T* matrix, int64_t pitch, const std::vector<int64_t>& indices) {
  std::vector<T*> found;
  for (int64_t i : indices) found.push_back(matrix + i * pitch);
  return found;
}

// Rows [first, first + count) of a matrix.
template <class T>
std::vector<T*> rows(T* matrix, int64_t pitch, int64_t first, int64_t count) {
  std::vector<T*> found;
  for (int64_t i = first; i < first + count; ++i) found.push_back(matrix + i * pitch);
  return found;
}

void locked_linear(const Tensor& out, const Tensor& x, const Tensor& mask, const Tensor& weight) {
  const Sizes s = check_arguments(x, "x", out, "out", mask, weight, "weight");
  check_apart(out, "out", {&x, &mask, &weight});
  for_dtype(out, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<Kept<T>> all = all_kept<T>(x, mask);
    T* results = static_cast<T*>(out.mutable_data_ptr());
    const T* w = static_cast<const T*>(weight.const_data_ptr());
    const int64_t blocks = (s.columns + kOutColumns - 1) / kOutColumns;
    in_parallel(s.batch * blocks, s.steps * s.features * kOutColumns, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / blocks, first = i % blocks * kOutColumns, depth = all[n].features.size();
        const auto b = rows(w, s.columns, all[n].features);
        const auto to = rows(results, s.columns, n * s.steps, s.steps);
        const RowProduct<T> p{s.steps, depth, {all[n].values.data(), depth, 1}, b.data(), to.data(), false};
        kernels<T>().row_product(p, first, std::min(first + kOutColumns, s.columns),
                                 scratch<T>(row_product_scratch(s.steps, depth)));
      }
    });
  });
}

void locked_linear_input_gradient(const Tensor& d_x, const Tensor& g, const Tensor& mask, const Tensor& weight) {
  const Sizes s = check_arguments(d_x, "d_x", g, "g", mask, weight, "weight");
  check_distinct(d_x, "d_x");
  check_apart(d_x, "d_x", {&g, &mask, &weight});
  for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    const T *gradients = static_cast<const T*>(g.const_data_ptr()), *w = static_cast<const T*>(weight.const_data_ptr());
    T* results = static_cast<T*>(d_x.mutable_data_ptr());
    const int64_t parts = (s.steps + kSteps - 1) / kSteps;
    in_parallel(s.batch * parts, kSteps * s.features * s.columns, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / parts, first = i % parts * kSteps, steps = std::min(kSteps, s.steps - first);
        const std::vector<int64_t> features = kept<T>(mask, n);
        const int64_t count = features.size();
        const auto a = rows(gradients, s.columns, n * s.steps + first, steps);
        const auto b = rows(w, s.columns, features);
        std::vector<T> sums(steps * count);
        kernels<T>().row_dots({steps, count, s.columns, a.data(), b.data(), sums.data()},
                              scratch<T>(row_dots_scratch(steps, count)));
        const T* factor = static_cast<const T*>(mask.const_data_ptr()) + n * mask.stride(0);
        for (int64_t t = 0; t < steps; ++t) {
          T* row = results + (first + t) * d_x.stride(0) + n * d_x.stride(1);
          for (int64_t k = 0; k < s.features; ++k) row[k * d_x.stride(2)] = 0;
          for (int64_t k = 0; k < count; ++k) {
            row[features[k] * d_x.stride(2)] = sums[t * count + k] * factor[features[k] * mask.stride(1)];
          }
        }
      }
    });
  });
}

void locked_linear_weight_gradient(const Tensor& d_weight, const Tensor& g, const Tensor& x, const Tensor& mask) {
  const Sizes s = check_arguments(x, "x", g, "g", mask, d_weight, "d_weight");
  check_apart(d_weight, "d_weight", {&g, &x, &mask});
  for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<Kept<T>> all = all_kept<T>(x, mask);
    T* results = static_cast<T*>(d_weight.mutable_data_ptr());
    const T* gradients = static_cast<const T*>(g.const_data_ptr());
    const int64_t blocks = (s.columns + kWeightColumns - 1) / kWeightColumns;
    in_parallel(blocks, s.batch * s.steps * s.features * kWeightColumns, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * kWeightColumns;
        for (int64_t n = 0; n < s.batch; ++n) {
          const int64_t count = all[n].features.size();
          const auto b = rows(gradients, s.columns, n * s.steps, s.steps);
          const auto to = rows(results, s.columns, all[n].features);
          const RowProduct<T> p{count, s.steps, {all[n].values.data(), 1, count}, b.data(), to.data(), true};
          kernels<T>().row_product(p, first, std::min(first + kWeightColumns, s.columns),
                                   scratch<T>(row_product_scratch(count, s.steps)));
        }
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("locked_linear_", TORCH_BOX(&locked_linear));
  m.impl("locked_linear_input_gradient_", TORCH_BOX(&locked_linear_input_gradient));
  m.impl("locked_linear_weight_gradient_", TORCH_BOX(&locked_linear_weight_gradient));
}

}  // namespace dartsfast
