// mixed_sum; the contract is in dartsfast/ops/mixed_sum.py.
#include "mixed_sum.call.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_arguments(const Tensors& z, const Tensor& mean, const Tensor& rstd) {
  check(!z.empty(), "z must hold at least one branch");
  check_image(z[0], "z");
  const int64_t branches = static_cast<int64_t>(z.size()), C = z[0].size(3);
  for (const Tensor& t : z) {
    check_fits(t, z[0], "z");
    check_shape(t, {z[0].size(0), z[0].size(1), z[0].size(2), C}, "z");
  }
  check_fits(mean, z[0], "mean");
  check_shape(mean, {branches, C}, "mean");
  check_fits(rstd, z[0], "rstd");
  check_shape(rstd, {branches, C}, "rstd");
}

// The branches, with the copies of those that the kernels cannot read as they are.
template <class T>
struct Given {
  Tensors kept;
  std::vector<NormedBranch<T>> branches;

  Given(const Tensors& z, const Tensor& means, const Tensor& rstds) {
    const T* mean = static_cast<const T*>(keep(dense(widened(means))).data);
    const T* rstd = static_cast<const T*>(keep(dense(widened(rstds))).data);
    Storage stored = Storage::own;
    for (const Tensor& t : z) stored = stored == Storage::own ? storage(t.scalar_type()) : stored;
    for (const Tensor& t : z) {
      branches.push_back({keep(by_pixel(readable(t, stored))), mean, rstd});
      mean += t.size(3), rstd += t.size(3);
    }
  }
  Array keep(const Tensor& t) { return array(kept.emplace_back(t)); }
};

Tensor mixed_sum(const Tensors& z, const Tensor& mean, const Tensor& rstd, const Tensor& weights,
                 const std::optional<Tensor>& base) {
  check_arguments(z, mean, rstd);
  check_fits(weights, z[0], "weights");
  check_shape(weights, {static_cast<int64_t>(z.size())}, "weights");
  if (base) {
    check_fits(*base, z[0], "base");
    check_shape(*base, {z[0].size(0), z[0].size(1), z[0].size(2), z[0].size(3)}, "base");
  }
  return for_dtype(z[0], [&](auto zero) {
    using T = decltype(zero);
    Given<T> given(z, mean, rstd);
    Tensor out = empty(widened(mean), {z[0].size(0), z[0].size(1), z[0].size(2), z[0].size(3)});
    const Array onto = base ? given.keep(by_pixel(widened(*base))) : Array();
    const T* w = static_cast<const T*>(given.keep(dense(widened(weights))).data);
    std::vector<const T*> each;
    for (size_t b = 0; b < z.size(); ++b) each.push_back(w + b);
    MixedSumCall<T> call(given.branches, each, onto, written_array(out));
    run_section({call.images()});
    return as(out, mean.scalar_type());
  });
}

std::tuple<Tensor, Tensor> mixed_sum_backward(const Tensor& g, const Tensors& z, const Tensor& mean,
                                              const Tensor& rstd) {
  check_arguments(z, mean, rstd);
  check_fits(g, z[0], "g");
  check_shape(g, {z[0].size(0), z[0].size(1), z[0].size(2), z[0].size(3)}, "g");
  return for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    Given<T> given(z, mean, rstd);
    const int64_t branches = static_cast<int64_t>(z.size()), C = g.size(3);
    const ScalarType dtype = arithmetic(g.scalar_type());
    Tensor dweights = torch::stable::new_empty(g, {branches}, dtype);
    Tensor means = torch::stable::new_empty(g, {1 + branches, C}, dtype);
    std::vector<T*> d, rows;
    for (int64_t b = 0; b < branches; ++b) d.push_back(written<T>(dweights) + b);
    for (int64_t r = 0; r <= branches; ++r) rows.push_back(written<T>(means) + r * C);
    MixedSumBackwardCall<T> call(given.branches, given.keep(by_pixel(widened(g))), d, rows);
    run_section({call.images()});
    run_section({call.finish()});
    return std::make_tuple(dweights, means);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("mixed_sum", DARTSFAST_BOX(mixed_sum));
  m.impl("mixed_sum_backward", DARTSFAST_BOX(mixed_sum_backward));
}

}  // namespace dartsfast
