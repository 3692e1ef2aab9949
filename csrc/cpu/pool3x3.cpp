// pool3x3 on the CPU; the contract is in dartsfast/ops/pool3x3.py.
#include "../pool3x3.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "kernels.h"
#include "moments.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

template <class T>
Pool3x3<T> arguments(const Tensor& x, int64_t stride) {
  Pool3x3<T> a{};
  a.N = x.size(0), a.H = x.size(1), a.W = x.size(2), a.C = x.size(3), a.stride = stride;
  a.Ho = (a.H - 1) / stride + 1, a.Wo = (a.W - 1) / stride + 1;
  a.x = image<T>(x);
  return a;
}

std::tuple<Tensor, Tensor> pool3x3(const Tensor& input, int64_t stride) {
  check_image(input, "x");
  check(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  return for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    const Tensor x = by_row(input);
    Pool3x3<T> a = arguments<T>(x, stride);
    const int64_t C = padded(a.C), count = chunks(a.Ho, a.Wo), part = a.N * count * 2 * C;
    Tensor z = empty(x, {2, a.N, a.Ho, a.Wo, a.C}), stats = torch::stable::new_empty(x, {2, 2, a.C});
    const Memory<T> parts = memory<T>(2 * part);
    a.z = static_cast<T*>(z.mutable_data_ptr()), a.moments = parts.get();
    in_parallel(a.N, a.Ho * a.Wo * a.C * 20, [&](int64_t begin, int64_t end) {
      T* tiles = scratch<T>(2 * chunk_rows(a.Wo) * a.Wo * C);
      for (int64_t n = begin; n < end; ++n) kernels<T>().pool3x3(a, n, tiles);
    });
    for (int64_t half = 0; half < 2; ++half) {
      T* out = static_cast<T*>(stats.mutable_data_ptr()) + half * 2 * a.C;
      moments<T>(a.moments + half * part, a.N, a.Ho, a.Wo, a.C, out);
    }
    return std::make_tuple(z, stats);
  });
}

Tensor pool3x3_backward(const Tensors& g, const Tensors& z, const std::optional<Tensor>& coef, const Tensor& input,
                        int64_t stride, const std::optional<Tensor>& base) {
  check_image(input, "x");
  check(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  check(g.size() == 2, "g must hold the gradients of maximum and average, got ", g.size());
  check(z.empty() ? !coef : z.size() == 2 && coef, "z and coef go together: both z and coef, or neither");
  const int64_t Ho = (input.size(1) - 1) / stride + 1, Wo = (input.size(2) - 1) / stride + 1, C = input.size(3);
  for (const auto* images : {&g, &z}) {
    for (const Tensor& t : *images) {
      check_like(t, input, "g and z");
      check_shape(t, {input.size(0), Ho, Wo, C}, "g and z");
    }
  }
  if (coef) {
    check_like(*coef, input, "coef");
    check_shape(*coef, {2, 4, C}, "coef");
  }
  if (base) {
    check_like(*base, input, "base");
    check_shape(*base, {input.size(0), input.size(1), input.size(2), C}, "base");
  }
  return for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    Tensors dense = {by_row(input)};
    Pool3x3<T> a = arguments<T>(dense[0], stride);
    const Memory<T> k = coef ? packed<T>(*coef, C) : nullptr;
    for (int half = 0; half < 2; ++half) {
      a.g[half] = image<T>(dense.emplace_back(by_row(g[half])));
      if (coef) a.saved[half] = image<T>(dense.emplace_back(by_row(z[half])));
    }
    if (base) a.base = image<T>(dense.emplace_back(by_row(*base)));
    Tensor dx = empty(input, {a.N, a.H, a.W, a.C});
    a.coef = k.get(), a.dx = static_cast<T*>(dx.mutable_data_ptr());
    in_parallel(a.N, a.Ho * a.Wo * a.C * 20, [&](int64_t begin, int64_t end) {
      T* sum = scratch<T>((a.H + 2) * (a.W + 2) * padded(C));
      for (int64_t n = begin; n < end; ++n) kernels<T>().pool3x3_backward(a, n, sum);
    });
    return dx;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) {
  m.impl("pool3x3", TORCH_BOX(&pool3x3));
  m.impl("pool3x3_backward", TORCH_BOX(&pool3x3_backward));
}

}  // namespace dartsfast
