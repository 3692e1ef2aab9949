// pool3x3; the contract is in dartsfast/ops/pool3x3.py.
#include "pool3x3.call.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

std::tuple<Tensor, Tensor> pool3x3(const Tensor& input, int64_t stride) {
  check_image(input, "x");
  check(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  return for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    const Tensor x = by_row(input);
    const int64_t N = x.size(0), Ho = (x.size(1) - 1) / stride + 1, Wo = (x.size(2) - 1) / stride + 1, C = x.size(3);
    Tensor z = empty(x, {2, N, Ho, Wo, C});
    Tensor stats = torch::stable::new_empty(x, {2, 2, C}, arithmetic(x.scalar_type()));
    T* const rows = written<T>(stats);
    Pool3x3Call<T> call(array(x), stride, {part(z, 0), part(z, 1)},
                        {Moments<T>{rows, rows + C}, Moments<T>{rows + 2 * C, rows + 3 * C}});
    run_section({call.images()});
    run_section({call.finish()});
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
      check_fits(t, input, "g and z");
      check_shape(t, {input.size(0), Ho, Wo, C}, "g and z");
    }
  }
  if (coef) {
    check_fits(*coef, input, "coef");
    check_shape(*coef, {2, 4, C}, "coef");
  }
  if (base) {
    check_fits(*base, input, "base");
    check_shape(*base, {input.size(0), input.size(1), input.size(2), C}, "base");
  }
  return for_dtype(input, [&](auto zero) {
    using T = decltype(zero);
    Tensors kept;
    const auto keep = [&](const Tensor& t) { return array(kept.emplace_back(t)); };
    Pool3x3Gradients<T> out;
    const T* k = coef ? static_cast<const T*>(keep(dense(widened(*coef))).data) : nullptr;
    for (int half = 0; half < 2; ++half) {
      out.g[half] = keep(by_row(widened(g[half])));
      if (coef) out.z[half] = keep(by_row(widened(z[half]))), out.coef[half] = k + half * 4 * C;
    }
    if (base) out.base = keep(by_row(widened(*base)));
    Tensor dx = empty(input, {input.size(0), input.size(1), input.size(2), C}, arithmetic(input.scalar_type()));
    out.dx = written_array(dx);
    Pool3x3BackwardCall<T> call(keep(by_row(input)), stride, out);
    run_section({call.images()});
    return as(dx, g[0].scalar_type());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("pool3x3", DARTSFAST_BOX(pool3x3));
  m.impl("pool3x3_backward", DARTSFAST_BOX(pool3x3_backward));
}

}  // namespace dartsfast
