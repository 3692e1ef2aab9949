// gemm_; the contract is in dartsfast/ops/gemm.py.
#include "gemm.call.h"

#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

void check_arguments(const Tensor& out, const Tensor& a, const Tensor& b) {
  check_ours(out, "out");
  check(out.scalar_type() == ScalarType::Float || out.scalar_type() == ScalarType::Double,
        "out must be float32 or float64");
  check_like(a, out, "a");
  check_like(b, out, "b");
  check_shape(a, {-1, -1}, "a");
  const int64_t M = a.size(0), K = a.size(1);
  check_shape(b, {K, -1}, "b");
  const int64_t N = b.size(1);
  check(M > 0 && N > 0 && K > 0, "a and b must not be empty, got ", shape{a}, " and ", shape{b});
  check(1.0 * M * K < 1e12 && 1.0 * K * N < 1e12, "a and b are too large: ", shape{a}, " and ", shape{b});
  check_shape(out, {M, N}, "out");
  check((N == 1 || out.stride(1) == 1) && (M == 1 || out.stride(0) >= N),
        "out must have adjacent columns and rows that do not overlap, got strides ", out.stride(0), " and ", out.stride(1));
  check_apart(out, "out", {&a, &b});
}

template <class T>
Matrix<const T> matrix(const Tensor& t) {
  return {read<T>(t), t.stride(0), t.stride(1)};
}

void gemm_(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  check_arguments(out, a, b);
  for_dtype(out, [&](auto zero) {
    using T = decltype(zero);
    GemmCall<T> call({out.size(0), out.size(1), a.size(1), matrix<T>(a), matrix<T>(b),
                      {written<T>(out), out.stride(0), 1}, accumulate});
    run_section({call.parts()});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) { m.impl("gemm_", DARTSFAST_BOX(gemm_)); }

}  // namespace dartsfast
