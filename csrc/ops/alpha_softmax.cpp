// alpha_softmax; the contract is in dartsfast/ops/alpha_softmax.py.
#include "alpha_softmax.call.h"

#include "served.h"
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

// The results, like `in`; with `d` the gradients.
Tensors rows_of(const Tensors& in, const Tensors& d) {
  return for_dtype(in[0], [&](auto zero) {
    using T = decltype(zero);
    Tensors out, kept;
    std::vector<SoftmaxRows<T>> rows;
    const auto all = [&](const Tensor& t) { return read<T>(kept.emplace_back(dense(t))); };
    for (size_t i = 0; i < in.size(); ++i) {
      const int64_t edges = in[i].size(0), K = in[i].size(1);
      const Tensor& made = out.emplace_back(torch::stable::new_empty(in[i], {edges, K}));
      rows.push_back({edges, K, all(in[i]), d.empty() ? nullptr : all(d[i]), written<T>(made)});
    }
    AlphaSoftmaxCall<T> call(rows);
    run_section({call.tensors()});
    return out;
  });
}

Tensors alpha_softmax(const Tensors& alphas) {
  check_arguments(alphas, "alphas");
  return rows_of(alphas, {});
}

Tensors alpha_softmax_backward(const Tensors& p, const Tensors& d) {
  check_arguments(p, "p");
  check_arguments(d, "d");
  check(p.size() == d.size(), "p and d must hold as many tensors, got ", p.size(), " and ", d.size());
  for (size_t i = 0; i < p.size(); ++i) {
    check_like(d[i], p[0], "d");
    check_shape(d[i], {p[i].size(0), p[i].size(1)}, "d");
  }
  return rows_of(p, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("alpha_softmax", DARTSFAST_BOX(alpha_softmax));
  m.impl("alpha_softmax_backward", DARTSFAST_BOX(alpha_softmax_backward));
}

}  // namespace dartsfast
