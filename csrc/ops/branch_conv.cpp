// branch_conv; the contract is in dartsfast/ops/branch_conv.py.
#include "branch_conv.call.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

void check_arguments(const Tensor& x, const std::optional<Tensor>& norm, const Tensors& depthwise,
                     const Tensors& pointwise, const Ints& dilation, int64_t stride) {
  check_image(x, "x");
  check(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  const int64_t branches = static_cast<int64_t>(pointwise.size()), Ci = x.size(3);
  check(branches > 0, "pointwise must hold one weight a branch, got none");
  check(depthwise.empty() || depthwise.size() == pointwise.size(),
        "depthwise must hold one weight a branch, or none at all: got ", depthwise.size(), " for ", branches);
  check(dilation.size() == depthwise.size(), "dilation must hold one number a depthwise weight: got ",
        dilation.size(), " for ", depthwise.size());
  if (norm) {
    check_fits(*norm, x, "norm");
    check_shape(*norm, {2, Ci}, "norm");
  }
  for (size_t b = 0; b < pointwise.size(); ++b) {
    check_fits(pointwise[b], x, "pointwise");
    check_shape(pointwise[b], {-1, Ci, 1, 1}, "pointwise");
    check(pointwise[b].size(0) > 0 && pointwise[b].size(0) == pointwise[0].size(0),
          "the pointwise weights of all branches must have the same number of output channels");
    if (depthwise.empty()) continue;
    check_fits(depthwise[b], x, "depthwise");
    check_shape(depthwise[b], {Ci, 1, -1, -1}, "depthwise");
    const int64_t K = depthwise[b].size(2);
    check(K == depthwise[b].size(3) && K % 2 == 1 && K * K <= kMaxTaps,
          "a depthwise kernel must be square, odd and at most 15x15, got ", shape{depthwise[b]});
    check(dilation[b] >= 1 && dilation[b] <= 16, "dilation must be 1 to 16, got ", dilation[b]);
  }
}

// The inputs, with the copies of those that the kernels cannot read as they are.
struct Given : BranchConvInputs {
  Tensors kept;

  Given(const Tensor& input, const std::optional<Tensor>& mean_rstd, const Tensors& depthwises,
        const Tensors& pointwises, const Ints& dilations, int64_t step, bool with_relu) {
    x = keep(by_row(input));
    if (mean_rstd) norm = keep(dense(widened(*mean_rstd)));
    for (const Tensor& t : depthwises) depthwise.push_back(keep(dense(widened(t))));
    for (const Tensor& t : pointwises) pointwise.push_back(keep(dense(widened(t))));
    dilation = dilations, stride = step, relu = with_relu;
  }
  Array keep(const Tensor& t) { return array(kept.emplace_back(t)); }
};

// How all images are stored; where they differ, as the numbers of the arithmetic.
Storage alike(const Tensors& images) {
  Storage found = images.empty() ? Storage::own : storage(images[0].scalar_type());
  for (const Tensor& t : images) found = storage(t.scalar_type()) == found ? found : Storage::own;
  return found;
}

std::tuple<Tensor, Tensor> branch_conv(const Tensor& x, const std::optional<Tensor>& norm, const Tensors& depthwise,
                                       const Tensors& pointwise, const Ints& dilation, int64_t stride, bool relu,
                                       const std::optional<ScalarType>& dtype) {
  check_arguments(x, norm, depthwise, pointwise, dilation, stride);
  const ScalarType kept_as = dtype ? *dtype : x.scalar_type(), own = arithmetic(x.scalar_type());
  check(arithmetic(kept_as) == own, "z cannot be stored in this dtype");
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Given given(readable(x, storage(kept_as)), norm, depthwise, pointwise, dilation, stride, relu);
    const int64_t branches = static_cast<int64_t>(pointwise.size()), Co = pointwise[0].size(0);
    const int64_t N = x.size(0), Ho = (x.size(1) - 1) / stride + 1, Wo = (x.size(2) - 1) / stride + 1;
    Tensor z = empty(x, {branches, N, Ho, Wo, Co}, kept_as);
    Tensor stats = torch::stable::new_empty(x, {branches, 2, Co}, own);
    std::vector<Array> images(branches);
    std::vector<Moments<T>> rows(branches);
    for (int64_t b = 0; b < branches; ++b) {
      images[b] = part(z, b);
      rows[b] = {written<T>(stats) + b * 2 * Co, written<T>(stats) + (b * 2 + 1) * Co};
    }
    BranchConvCall<T> call(given, images, rows);
    run_section({call.images()});
    run_section({call.finish()});
    return std::make_tuple(z, stats);
  });
}

std::tuple<Tensor, Tensors, Tensors, Tensor> branch_conv_backward(
    const Tensors& g, const Tensors& z, const std::optional<Tensor>& coef, const Tensor& x,
    const std::optional<Tensor>& norm, const Tensors& depthwise, const Tensors& pointwise, const Ints& dilation,
    int64_t stride, bool relu, const std::optional<Tensor>& base, bool input_grad, bool weight_grads) {
  check_arguments(x, norm, depthwise, pointwise, dilation, stride);
  const size_t B = pointwise.size();
  const int64_t Ho = (x.size(1) - 1) / stride + 1, Wo = (x.size(2) - 1) / stride + 1, Co = pointwise[0].size(0);
  check(g.size() == B, "g must hold one gradient a branch: got ", g.size(), " for ", B);
  check(z.empty() ? !coef : z.size() == B && coef, "z and coef go together: one z a branch and coef, or neither");
  for (const auto* images : {&g, &z}) {
    for (const Tensor& t : *images) {
      check_fits(t, x, "g and z");
      check_shape(t, {x.size(0), Ho, Wo, Co}, "g and z");
    }
  }
  if (coef) {
    check_fits(*coef, x, "coef");
    check_shape(*coef, {static_cast<int64_t>(B), 4, Co}, "coef");
  }
  if (base) {
    check(input_grad, "base is given but no input gradient is asked for");
    check_fits(*base, x, "base");
    check_shape(*base, {x.size(0), x.size(1), x.size(2), x.size(3)}, "base");
  }
  const ScalarType own = arithmetic(x.scalar_type());
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Storage stored = alike(z);
    Given given(readable(x, stored), norm, depthwise, pointwise, dilation, stride, relu);
    BranchConvGradients<T> out;
    for (const Tensor& t : g) out.g.push_back(given.keep(by_row(widened(t))));
    for (const Tensor& t : z) out.z.push_back(given.keep(by_row(readable(t, stored))));
    if (coef) {
      const T* rows = static_cast<const T*>(given.keep(dense(widened(*coef))).data);
      for (size_t b = 0; b < B; ++b) out.coef.push_back(dense_array(rows + b * 4 * Co, {4, Co}));
    }
    if (base) out.base = given.keep(by_row(widened(*base)));
    const bool averages = input_grad && norm;
    Tensor dx = empty(x, {input_grad ? x.size(0) : 0, x.size(1), x.size(2), x.size(3)}, own);
    Tensor means = torch::stable::new_empty(x, {averages ? 2 : 0, x.size(3)}, own);
    if (input_grad) out.dx = written_array(dx);
    if (averages) out.means = written<T>(means);
    Tensors taps_grad, pointwise_grad;
    const auto like = [own](const Tensor& weight, Tensors& grads) {
      return written<T>(grads.emplace_back(torch::stable::new_empty(weight, weight.sizes(), own)));
    };
    for (size_t b = 0; b < (weight_grads ? B : 0); ++b) {
      out.pointwise.push_back(like(pointwise[b], pointwise_grad));
      if (b < depthwise.size()) out.depthwise.push_back(like(depthwise[b], taps_grad));
    }
    BranchConvBackwardCall<T> call(given, out);
    run_section({call.images()});
    run_section({call.finish()});
    const auto narrowed = [](Tensors& grads, const Tensors& weights) {
      for (size_t b = 0; b < grads.size(); ++b) grads[b] = as(grads[b], weights[b].scalar_type());
    };
    narrowed(taps_grad, depthwise), narrowed(pointwise_grad, pointwise);
    return std::make_tuple(as(dx, g[0].scalar_type()), taps_grad, pointwise_grad, means);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("branch_conv", DARTSFAST_BOX(branch_conv));
  m.impl("branch_conv_backward", DARTSFAST_BOX(branch_conv_backward));
}

}  // namespace dartsfast
