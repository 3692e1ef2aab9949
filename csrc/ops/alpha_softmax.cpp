// alpha_softmax; the contract is in dartsfast/ops/alpha_softmax.py.
#include "../alpha_softmax.h"

#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_arguments(const Tensors& alphas, const char* name) {
  check(!alphas.empty(), name, " must hold at least one tensor");
  for (const Tensor& a : alphas) {
    check(a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::Double, name,
          " must be float32 or float64");
    check_like(a, alphas[0], name);
    check(a.dim() == 2 && a.size(1) > 0, name, " must be [edges, operations], got ", shape{a});
  }
}

// f(row, elements a row) over the rows of every tensor.
template <class T>
Tensor row_by_row(const Tensor& like, int64_t rows, void (*f)(const T*, const T*, int64_t, T*), const T* a, const T* b) {
  const int64_t K = like.size(1);
  Tensor out = torch::stable::new_empty(like, {rows, K});
  T* p = static_cast<T*>(out.mutable_data_ptr());
  for (int64_t r = 0; r < rows; ++r) f(a + r * K, b + r * K, K, p + r * K);
  return out;
}

Tensors alpha_softmax(const Tensors& alphas) {
  check_arguments(alphas, "alphas");
  Tensors out;
  for (const Tensor& alpha : alphas) {
    out.push_back(for_dtype(alpha, [&](auto zero) {
      using T = decltype(zero);
      const auto f = [](const T* a, const T*, int64_t K, T* p) { alpha_softmax_row(a, K, p); };
      const std::vector<T> a = values<T>(alpha);
      return row_by_row<T>(alpha, alpha.size(0), f, a.data(), a.data());
    }));
  }
  return out;
}

Tensors alpha_softmax_backward(const Tensors& p, const Tensors& d) {
  check_arguments(p, "p");
  check_arguments(d, "d");
  check(p.size() == d.size(), "p and d must hold as many tensors, got ", p.size(), " and ", d.size());
  Tensors out;
  for (size_t i = 0; i < p.size(); ++i) {
    check_like(d[i], p[0], "d");
    check_shape(d[i], {p[i].size(0), p[i].size(1)}, "d");
    out.push_back(for_dtype(p[i], [&](auto zero) {
      using T = decltype(zero);
      const std::vector<T> a = values<T>(p[i]), b = values<T>(d[i]);
      return row_by_row<T>(p[i], p[i].size(0), alpha_softmax_backward_row<T>, a.data(), b.data());
    }));
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("alpha_softmax", TORCH_BOX(&alpha_softmax));
  m.impl("alpha_softmax_backward", TORCH_BOX(&alpha_softmax_backward));
}

}  // namespace dartsfast
