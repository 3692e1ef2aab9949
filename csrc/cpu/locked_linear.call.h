// locked_linear_ and its gradients on given memory.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "packing.h"
#include "section.h"

namespace dartsfast {

// The features of batch element n that dropout left.
template <class T>
std::vector<int64_t> kept(const LockedLinear<T>& a, int64_t n) {
  const T* row = a.mask + n * a.mask_stride[0];
  std::vector<int64_t> features;
  for (int64_t k = 0; k < a.features; ++k) {
    if (row[k * a.mask_stride[1]] != 0) features.push_back(k);
  }
  return features;
}

// x * mask [T, features] of batch element n.
template <class T>
std::vector<T> masked(const LockedLinear<T>& a, int64_t n, const std::vector<int64_t>& features) {
  const T *row = a.x + n * a.x_stride[1], *factor = a.mask + n * a.mask_stride[0];
  std::vector<T> values;
  values.reserve(a.steps * features.size());
  for (int64_t t = 0; t < a.steps; ++t, row += a.x_stride[0]) {
    for (int64_t k : features) values.push_back(row[k * a.x_stride[2]] * factor[k * a.mask_stride[1]]);
  }
  return values;
}

// The inputs of a batch element that dropout left.
template <class T>
struct Kept {
  std::vector<int64_t> features;
  std::vector<T> values;  // [T, features]

  Kept(const LockedLinear<T>& a, int64_t n) : features(kept(a, n)), values(masked(a, n, features)) {}
};

template <class T>
std::vector<Kept<T>> all_kept(const LockedLinear<T>& a) {
  std::vector<Kept<T>> all;
  for (int64_t n = 0; n < a.batch; ++n) all.emplace_back(a, n);
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

template <class T>
class LockedLinearCall {
 public:
  explicit LockedLinearCall(const LockedLinear<T>& args) : args_(args), kept_(all_kept(args)) {}
  LockedLinearCall(const LockedLinearCall&) = delete;

  Work parts() {
    const LockedLinear<T>& a = args_;
    const int64_t blocks = (a.columns + kColumns - 1) / kColumns;
    return {a.batch * blocks, a.steps * a.features * kColumns, [this, blocks](int64_t i, bool) {
              const LockedLinear<T>& a = args_;
              const int64_t n = i / blocks, first = i % blocks * kColumns, depth = kept_[n].features.size();
              const auto b = rows<const T>(a.weight, a.columns, kept_[n].features);
              const auto to = rows(a.y, a.columns, n * a.steps, a.steps);
              const RowProduct<T> p{a.steps, depth, {kept_[n].values.data(), depth, 1}, b.data(), to.data(), false};
              kernels<T>().row_product(p, first, std::min(first + kColumns, a.columns),
                                       scratch<T>(row_product_scratch(a.steps, depth)));
            }};
  }

 private:
  static constexpr int64_t kColumns = 1024;  // of a part

  LockedLinear<T> args_;
  std::vector<Kept<T>> kept_;
};

template <class T>
class LockedInputGradientCall {
 public:
  explicit LockedInputGradientCall(const LockedLinear<T>& args) : args_(args) {}
  LockedInputGradientCall(const LockedInputGradientCall&) = delete;

  Work parts() {
    const int64_t parts = (args_.steps + kSteps - 1) / kSteps;
    return {args_.batch * parts, kSteps * args_.features * args_.columns,
            [this, parts](int64_t i, bool) { part(i / parts, i % parts * kSteps); }};
  }

 private:
  static constexpr int64_t kSteps = 36;  // of a part

  // Batch element n, from a time step on.
  void part(int64_t n, int64_t first) const {
    const LockedLinear<T>& a = args_;
    const int64_t steps = std::min(kSteps, a.steps - first);
    const std::vector<int64_t> features = kept(a, n);
    const int64_t count = features.size();
    const auto gradients = rows<const T>(a.y, a.columns, n * a.steps + first, steps);
    const auto weights = rows<const T>(a.weight, a.columns, features);
    std::vector<T> sums(steps * count);
    kernels<T>().row_dots({steps, count, a.columns, gradients.data(), weights.data(), sums.data()},
                          scratch<T>(row_dots_scratch(steps, count)));
    const T* factor = a.mask + n * a.mask_stride[0];
    for (int64_t t = 0; t < steps; ++t) {
      T* row = a.x + (first + t) * a.x_stride[0] + n * a.x_stride[1];
      for (int64_t k = 0; k < a.features; ++k) row[k * a.x_stride[2]] = 0;
      for (int64_t k = 0; k < count; ++k) {
        row[features[k] * a.x_stride[2]] = sums[t * count + k] * factor[features[k] * a.mask_stride[1]];
      }
    }
  }

  LockedLinear<T> args_;
};

template <class T>
class LockedWeightGradientCall {
 public:
  explicit LockedWeightGradientCall(const LockedLinear<T>& args) : args_(args), kept_(all_kept(args)) {}
  LockedWeightGradientCall(const LockedWeightGradientCall&) = delete;

  Work parts() {
    const LockedLinear<T>& a = args_;
    const int64_t blocks = (a.columns + kColumns - 1) / kColumns;
    return {blocks, a.batch * a.steps * a.features * kColumns, [this](int64_t i, bool) {
              const LockedLinear<T>& a = args_;
              const int64_t first = i * kColumns;
              for (int64_t n = 0; n < a.batch; ++n) {
                const int64_t count = kept_[n].features.size();
                const auto b = rows<const T>(a.y, a.columns, n * a.steps, a.steps);
                const auto to = rows(a.weight, a.columns, kept_[n].features);
                const RowProduct<T> p{count, a.steps, {kept_[n].values.data(), 1, count}, b.data(), to.data(), true};
                kernels<T>().row_product(p, first, std::min(first + kColumns, a.columns),
                                         scratch<T>(row_product_scratch(count, a.steps)));
              }
            }};
  }

 private:
  static constexpr int64_t kColumns = 512;  // of a part

  LockedLinear<T> args_;
  std::vector<Kept<T>> kept_;
};

}  // namespace dartsfast
