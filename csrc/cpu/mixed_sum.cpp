// mixed_sum on the CPU; the contract is in dartsfast/ops/mixed_sum.py.
#include "../mixed_sum.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "kernels.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_arguments(const Tensors& z, const Tensor& mean, const Tensor& rstd) {
  check(!z.empty(), "z must hold at least one branch");
  check_image(z[0], "z");
  const int64_t branches = static_cast<int64_t>(z.size()), C = z[0].size(3);
  for (const Tensor& t : z) {
    check_like(t, z[0], "z");
    check_shape(t, {z[0].size(0), z[0].size(1), z[0].size(2), C}, "z");
  }
  check_like(mean, z[0], "mean");
  check_shape(mean, {branches, C}, "mean");
  check_like(rstd, z[0], "rstd");
  check_shape(rstd, {branches, C}, "rstd");
}

// The argument struct and everything that it points to.
template <class T>
struct Call {
  MixedSum<T> args{};
  Tensors dense;
  std::vector<Image<const T>> z;
  Memory<T> mean, rstd;

  Call(const Tensors& images, const Tensor& means, const Tensor& rstds)
      : mean(packed<T>(means, images[0].size(3))), rstd(packed<T>(rstds, images[0].size(3))) {
    for (const Tensor& t : images) z.push_back(keep(t));
    const Tensor& first = images[0];
    args.N = first.size(0), args.H = first.size(1), args.W = first.size(2), args.C = first.size(3);
    args.branches = static_cast<int64_t>(z.size()), args.z = z.data();
    args.mean = mean.get(), args.rstd = rstd.get();
  }
  Image<const T> keep(const Tensor& t) { return image<T>(dense.emplace_back(by_pixel(t))); }
};

Tensor mixed_sum(const Tensors& z, const Tensor& mean, const Tensor& rstd, const Tensor& weights,
                 const std::optional<Tensor>& base) {
  check_arguments(z, mean, rstd);
  check_like(weights, z[0], "weights");
  check_shape(weights, {static_cast<int64_t>(z.size())}, "weights");
  if (base) {
    check_like(*base, z[0], "base");
    check_shape(*base, {z[0].size(0), z[0].size(1), z[0].size(2), z[0].size(3)}, "base");
  }
  return for_dtype(z[0], [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(z, mean, rstd);
    MixedSum<T>& a = call.args;
    const std::vector<T> w = values<T>(weights);
    a.weights = w.data();
    if (base) a.base = call.keep(*base);
    Tensor out = empty(z[0], {a.N, a.H, a.W, a.C});
    a.out = static_cast<T*>(out.mutable_data_ptr());
    in_parallel(a.N, a.H * a.W * a.C * a.branches * 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) kernels<T>().mixed_sum(a, n, nullptr);
    });
    return out;
  });
}

std::tuple<Tensor, Tensor> mixed_sum_backward(const Tensor& g, const Tensors& z, const Tensor& mean,
                                              const Tensor& rstd) {
  check_arguments(z, mean, rstd);
  check_like(g, z[0], "g");
  check_shape(g, {z[0].size(0), z[0].size(1), z[0].size(2), z[0].size(3)}, "g");
  return for_dtype(g, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(z, mean, rstd);
    MixedSum<T>& a = call.args;
    a.g = call.keep(g);
    const int64_t C = padded(a.C), count = a.N * chunks(a.H, a.W), width = (1 + a.branches) * C;
    const Memory<T> sums = memory<T>(count * width);
    a.sums = sums.get();
    in_parallel(a.N, a.H * a.W * a.C * a.branches * 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) kernels<T>().mixed_sum_backward(a, n, nullptr);
    });
    kernels<T>().tree_sum(a.sums, count, width, width);
    Tensor dweights = torch::stable::new_empty(g, {a.branches}), means = torch::stable::new_empty(g, {1 + a.branches, a.C});
    T* d = static_cast<T*>(dweights.mutable_data_ptr());
    T* out = static_cast<T*>(means.mutable_data_ptr());
    const T pixels = static_cast<T>(a.N * a.H * a.W);
    for (int64_t r = 0; r <= a.branches; ++r) {
      T* sum = a.sums + r * C;
      for (int64_t c = 0; c < a.C; ++c) out[r * a.C + c] = sum[c] / pixels;
      if (r == 0) continue;
      kernels<T>().tree_sum(sum, a.C, 1, 1);
      d[r - 1] = sum[0];
    }
    return std::make_tuple(dweights, means);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) {
  m.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  m.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
}

}  // namespace dartsfast
