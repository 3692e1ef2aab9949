// gemm_; the contract is in dartsfast/ops/gemm.py.
#include "../gemm.h"

#include <algorithm>

#include "kernels.h"
#include "packing.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

// Threads share the side of the result with more units: as many rows or columns as tiles have on every instruction set,
// or by half as many columns: rather an idle register than a thread with more to do.
constexpr int64_t kRowUnit = 12, kColumnUnit = 16;

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
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

void gemm_(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  check_arguments(out, a, b);
  for_dtype(out, [&](auto zero) {
    using T = decltype(zero);
    const Gemm<T> all = {out.size(0), out.size(1), a.size(1), matrix<T>(a), matrix<T>(b),
                         {static_cast<T*>(out.mutable_data_ptr()), out.stride(0), 1}, accumulate};
    // A part packs what it needs of the other side, all of it, for itself.
    const int64_t row_units = (all.M + kRowUnit - 1) / kRowUnit, column_units = (all.N + kColumnUnit - 1) / kColumnUnit;
    const bool by_rows = row_units >= column_units;
    const int64_t units = by_rows ? row_units : column_units, unit = by_rows ? kRowUnit : kColumnUnit;
    const int64_t length = by_rows ? all.M : all.N, other = by_rows ? all.N : all.M;
    in_parallel(units, 2 * all.K * other * unit, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * unit, size = std::min(end * unit, length) - first;
      Gemm<T> part = all;
      (by_rows ? part.M : part.N) = size;
      (by_rows ? part.a : part.b) = by_rows ? all.a.at(first, 0) : all.b.at(0, first);
      part.out = by_rows ? all.out.at(first, 0) : all.out.at(0, first);
      kernels<T>().gemm(part, scratch<T>(kGemmScratch));
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) { m.impl("gemm_", TORCH_BOX(&gemm_)); }

}  // namespace dartsfast
