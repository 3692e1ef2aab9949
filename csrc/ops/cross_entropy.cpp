// cross_entropy_; the contract is in dartsfast/ops/cross_entropy.py.
#include "../cross_entropy.h"

#include <cmath>
#include <optional>

#include "kernels.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

void check_arguments(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& labels) {
  check_ours(logits, "logits");
  check(logits.scalar_type() == ScalarType::Float || logits.scalar_type() == ScalarType::Double,
        "logits must be float32 or float64");
  check_shape(logits, {-1, -1}, "logits");
  const int64_t R = logits.size(0), V = logits.size(1);
  check(R > 0 && V > 0 && logits.is_contiguous(), "logits must be [R, V], contiguous, not empty, got ", shape{logits});
  if (bias) {
    check_like(*bias, logits, "bias");
    check_shape(*bias, {V}, "bias");
  }
  check(is_ours(labels) && labels.scalar_type() == ScalarType::Long, "labels must be int64 on ", kDevice);
  check_shape(labels, {R}, "labels");
}

Tensor cross_entropy_(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& labels, double scale) {
  check_arguments(logits, bias, labels);
  const int64_t R = logits.size(0), V = logits.size(1);
  const std::vector<int64_t> label = values<int64_t>(labels);
  for (int64_t l : label) check(l >= 0 && l < V, "labels must be from 0 to ", V - 1, ", got ", l);
  return for_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> b = bias ? values<T>(*bias) : std::vector<T>();
    const CrossEntropy<T> a = {V, bias ? b.data() : nullptr, static_cast<T>(scale)};
    Tensor losses = torch::stable::new_empty(logits, {R});
    T *rows = static_cast<T*>(logits.mutable_data_ptr()), *loss = static_cast<T*>(losses.mutable_data_ptr());
    in_parallel(R, V * 30, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const RowLoss<T> found = kernels<T>().cross_entropy_row(a, rows + i * V, label[i]);
        loss[i] = static_cast<T>(std::log(static_cast<double>(found.sum))) - found.label;
      }
    });
    return losses;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) { m.impl("cross_entropy_", TORCH_BOX(&cross_entropy_)); }

}  // namespace dartsfast
