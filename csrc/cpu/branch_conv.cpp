// branch_conv on the CPU; the contract is in dartsfast/ops/branch_conv.py.
#include "../branch_conv.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "kernels.h"
#include "moments.h"
#include "tap_lists.h"
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
    check_like(*norm, x, "norm");
    check_shape(*norm, {2, Ci}, "norm");
  }
  for (size_t b = 0; b < pointwise.size(); ++b) {
    check_like(pointwise[b], x, "pointwise");
    check_shape(pointwise[b], {-1, Ci, 1, 1}, "pointwise");
    check(pointwise[b].size(0) > 0 && pointwise[b].size(0) == pointwise[0].size(0),
          "the pointwise weights of all branches must have the same number of output channels");
    if (depthwise.empty()) continue;
    check_like(depthwise[b], x, "depthwise");
    check_shape(depthwise[b], {Ci, 1, -1, -1}, "depthwise");
    const int64_t K = depthwise[b].size(2);
    check(K == depthwise[b].size(3) && K % 2 == 1 && K * K <= kMaxTaps,
          "a depthwise kernel must be square, odd and at most 15x15, got ", shape{depthwise[b]});
    check(dilation[b] >= 1 && dilation[b] <= 16, "dilation must be 1 to 16, got ", dilation[b]);
  }
}

// The argument struct and everything that it points to.
template <class T>
struct Call {
  BranchConv<T> args{};
  std::vector<Branch<T>> branch;
  std::vector<Taps> taps;  // forward, then [stride, stride] of the adjoint, of every branch
  std::vector<Memory<T>> kept;
  Tensor x;

  Call(const Tensor& input, const std::optional<Tensor>& norm, const Tensors& depthwise, const Tensors& pointwise,
       const Ints& dilation, int64_t stride, bool relu)
      : branch(pointwise.size()), x(by_row(input)) {
    const int64_t Ci = x.size(3), Co = pointwise[0].size(0);
    args.N = x.size(0), args.H = x.size(1), args.W = x.size(2), args.Ci = Ci, args.Co = Co;
    args.stride = stride, args.Ho = (args.H - 1) / stride + 1, args.Wo = (args.W - 1) / stride + 1;
    args.x = image<T>(x), args.relu = relu;
    args.norm = norm ? keep(packed<T>(*norm, Ci)) : nullptr;
    args.branches = static_cast<int64_t>(branch.size()), args.branch = branch.data();
    for (size_t b = 0; b < branch.size(); ++b) {
      branch[b] = {};
      branch[b].kernel = branch[b].dilation = 1;
      branch[b].pointwise = keep(packed<T, true>(pointwise[b], Ci));
      branch[b].transposed = keep(packed<T>(pointwise[b], Ci));
      if (depthwise.empty()) continue;
      const int64_t K = depthwise[b].size(2);
      branch[b].kernel = K, branch[b].dilation = dilation[b];
      branch[b].taps = keep(packed<T, true>(depthwise[b], K * K));
    }
    if (!depthwise.empty()) list_taps();
  }
  void list_taps() {
    const int64_t P = border(args), Q = output_border(args), S = args.stride, each = 1 + S * S;
    taps.reserve(branch.size() * each);
    for (const Branch<T>& b : branch) {
      taps.push_back(forward_taps(b.kernel, b.dilation, P, args.W + 2 * P));
      for (int64_t i = 0; i < S * S; ++i) {
        taps.push_back(adjoint_taps(b.kernel, b.dilation, S, i / S, i % S, Q, args.Wo + 2 * Q));
      }
    }
    for (size_t b = 0; b < branch.size(); ++b) {
      branch[b].forward = taps.data() + b * each;
      branch[b].adjoint = branch[b].forward + 1;
    }
  }
  T* fresh(int64_t n) { return keep(memory<T>(n)); }
  T* keep(Memory<T> one) { return kept.emplace_back(std::move(one)).get(); }
};

// Multiplications of an image.
template <class T>
int64_t cost(const BranchConv<T>& a) {
  int64_t taps = 0;
  for (int64_t b = 0; b < a.branches; ++b) taps += a.branch[b].kernel * a.branch[b].kernel;
  return a.Ho * a.Wo * a.Ci * (taps + a.branches * a.Co);
}

std::tuple<Tensor, Tensor> branch_conv(const Tensor& x, const std::optional<Tensor>& norm, const Tensors& depthwise,
                                       const Tensors& pointwise, const Ints& dilation, int64_t stride, bool relu,
                                       const std::optional<ScalarType>& dtype) {
  check_arguments(x, norm, depthwise, pointwise, dilation, stride);
  check(!dtype || *dtype == x.scalar_type(), "on a CPU z is stored in the dtype of x only");
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(x, norm, depthwise, pointwise, dilation, stride, relu);
    const BranchConv<T>& a = call.args;
    const int64_t count = chunks(a.Ho, a.Wo), C = padded(a.Co), image = a.Ho * a.Wo;
    Tensor z = empty(x, {a.branches, a.N, a.Ho, a.Wo, a.Co});
    Tensor stats = torch::stable::new_empty(x, {a.branches, 2, a.Co});
    for (int64_t b = 0; b < a.branches; ++b) {
      call.branch[b].z = static_cast<T*>(z.mutable_data_ptr()) + b * a.N * image * a.Co;
      call.branch[b].moments = call.fresh(a.N * count * 2 * C);
    }
    const int64_t size = scratch_size(a);
    in_parallel(a.N, cost(a), [&](int64_t begin, int64_t end) {
      T* tiles = scratch<T>(size);
      for (int64_t n = begin; n < end; ++n) kernels<T>().branch_conv(a, n, tiles, n == begin);
    });
    T* out = static_cast<T*>(stats.mutable_data_ptr());
    in_parallel(a.branches, a.N * count * 20 * C, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        moments<T>(call.branch[b].moments, a.N, a.Ho, a.Wo, a.Co, out + b * 2 * a.Co);
      }
    });
    return std::make_tuple(z, stats);
  });
}

// Sum part [N, rows, width'] over N and write it as [width, rows], the layout of the weight.
template <class T>
void weight_gradient(T* part, int64_t N, int64_t rows, int64_t width, Tensor& grad) {
  const int64_t P = padded(width);
  kernels<T>().tree_sum(part, N, rows * P, rows * P);
  T* out = static_cast<T*>(grad.mutable_data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) out[c * rows + r] = part[r * P + c];
  }
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
      check_like(t, x, "g and z");
      check_shape(t, {x.size(0), Ho, Wo, Co}, "g and z");
    }
  }
  if (coef) {
    check_like(*coef, x, "coef");
    check_shape(*coef, {static_cast<int64_t>(B), 4, Co}, "coef");
  }
  if (base) {
    check(input_grad, "base is given but no input gradient is asked for");
    check_like(*base, x, "base");
    check_shape(*base, {x.size(0), x.size(1), x.size(2), x.size(3)}, "base");
  }
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(x, norm, depthwise, pointwise, dilation, stride, relu);
    BranchConv<T>& a = call.args;
    const int64_t Ci = padded(a.Ci), C = padded(a.Co), count = chunks(a.H, a.W);
    Tensors dense;
    const auto keep = [&](const Tensor& t) { return image<T>(dense.emplace_back(by_row(t))); };
    const T* k = coef ? call.keep(packed<T>(*coef, a.Co)) : nullptr;
    for (size_t b = 0; b < B; ++b) {
      Branch<T>& branch = call.branch[b];
      branch.g = keep(g[b]);
      if (coef) branch.saved = keep(z[b]), branch.coef = k + b * 4 * C;
      if (!weight_grads) continue;
      branch.pointwise_grad = call.fresh(a.N * a.Ci * C);
      if (branch.taps) branch.taps_grad = call.fresh(a.N * branch.kernel * branch.kernel * Ci);
    }
    Tensor dx = empty(x, {input_grad ? a.N : 0, a.H, a.W, a.Ci});
    if (input_grad) a.dx = static_cast<T*>(dx.mutable_data_ptr());
    if (base) a.base = keep(*base);
    if (input_grad && norm) a.norm_sums = call.fresh(a.N * count * 2 * Ci);
    const int64_t size = scratch_size(a);
    in_parallel(a.N, 3 * cost(a), [&](int64_t begin, int64_t end) {
      T* tiles = scratch<T>(size);
      for (int64_t n = begin; n < end; ++n) kernels<T>().branch_conv_backward(a, n, tiles, n == begin);
    });
    Tensors taps_grad, pointwise_grad;
    for (size_t b = 0; b < (weight_grads ? B : 0); ++b) {
      pointwise_grad.push_back(torch::stable::new_empty(pointwise[b], pointwise[b].sizes()));
      if (b < depthwise.size()) taps_grad.push_back(torch::stable::new_empty(depthwise[b], depthwise[b].sizes()));
    }
    in_parallel(pointwise_grad.size(), a.N * a.Ci * C, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const Branch<T>& branch = a.branch[b];
        weight_gradient<T>(branch.pointwise_grad, a.N, a.Ci, a.Co, pointwise_grad[b]);
        if (branch.taps) weight_gradient<T>(branch.taps_grad, a.N, branch.kernel * branch.kernel, a.Ci, taps_grad[b]);
      }
    });
    Tensor means = torch::stable::new_empty(x, {a.norm_sums ? 2 : 0, a.Ci});
    if (a.norm_sums) {
      kernels<T>().tree_sum(a.norm_sums, a.N * count, 2 * Ci, 2 * Ci);
      T* out = static_cast<T*>(means.mutable_data_ptr());
      const T pixels = static_cast<T>(a.N * a.H * a.W);
      for (int64_t c = 0; c < a.Ci; ++c) {
        out[c] = a.norm_sums[c] / pixels;
        out[a.Ci + c] = a.norm_sums[Ci + c] / pixels;
      }
    }
    return std::make_tuple(dx, taps_grad, pointwise_grad, means);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) {
  m.impl("branch_conv", TORCH_BOX(&branch_conv));
  m.impl("branch_conv_backward", TORCH_BOX(&branch_conv_backward));
}

}  // namespace dartsfast
