// cross_entropy_; the contract is in dartsfast/ops/cross_entropy.py.
#include "cross_entropy.call.h"

#include <optional>

#include "served.h"
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
  check(is_ours(labels) && labels.scalar_type() == ScalarType::Long, "labels must be int64 on the ", kDevice);
  check_shape(labels, {R}, "labels");
}

Tensor cross_entropy_(const Tensor& logits, const std::optional<Tensor>& bias, const Tensor& labels, double scale) {
  check_arguments(logits, bias, labels);
  return for_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    const int64_t R = logits.size(0), V = logits.size(1);
    const Tensor classes = dense(labels), added = bias ? dense(*bias) : logits;
    Tensor losses = torch::stable::new_empty(logits, {R});
    const CrossEntropy<T> a = {V, bias ? read<T>(added) : nullptr, static_cast<T>(scale)};
    CrossEntropyCall<T> call(a, R, written<T>(logits), read<int64_t>(classes),
                             written<T>(losses));
    run_section({call.rows()});
    return losses;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) { m.impl("cross_entropy_", DARTSFAST_BOX(cross_entropy_)); }

}  // namespace dartsfast
