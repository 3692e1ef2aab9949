// rnn_node; the contract is in dartsfast/ops/rnn_node.py.
#include "../rnn_node.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "cache.h"
#include "kernels.h"
#include "packing.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_arguments(const Tensor& gates, const Tensor& states, const Tensor& weights, double eps) {
  check_ours(states, "states");
  check(states.scalar_type() == ScalarType::Float || states.scalar_type() == ScalarType::Double,
        "states must be float32 or float64");
  check_shape(states, {-1, -1, -1}, "states");
  for (int64_t i = 0; i < 3; ++i) check(states.size(i) > 0, "states must not be empty, got ", shape{states});
  const int64_t P = states.size(0), B = states.size(1), H = states.size(2);
  check(1.0 * P * B * H < 1e12, "states is too large: ", shape{states});
  check_like(gates, states, "gates");
  check_shape(gates, {P, B, 2 * H}, "gates");
  check_like(weights, states, "weights");
  check_shape(weights, {P, kActivations}, "weights");
  check(eps >= 0, "eps must not be negative, got ", eps);
}

// The argument struct and everything that it points to.
template <class T>
struct Call {
  RnnNode<T> args{};
  Tensors dense;
  std::vector<T> weights, norm;

  Call(const Tensor& gates, const Tensor& states, const Tensor& mixing) {
    args.P = states.size(0), args.B = states.size(1), args.H = states.size(2);
    args.gates = keep(gates), args.states = keep(states);
    const std::vector<T> w = values<T>(mixing);
    for (int64_t j = 0; j < args.P; ++j) {
      T sum = w[j * kActivations];
      for (int64_t k = 0; k < kActivations; ++k) {
        weights.push_back(w[j * kActivations + k]);
        if (k) sum += w[j * kActivations + k];
      }
      weights.push_back(sum);
    }
    args.weights = weights.data();
  }
  // [P, B, C] or [B, C].
  Image<const T> keep(const Tensor& t) {
    const int64_t rows = t.dim() - 2;
    const Tensor& d = dense.emplace_back(t.stride(rows + 1) == 1 || t.size(rows + 1) == 1 ? t : torch::stable::contiguous(t));
    return {static_cast<const T*>(d.const_data_ptr()), rows ? d.stride(0) : 0, d.stride(rows), 0};
  }
  int64_t parts() const { return chunks(args.B, 1) * blocks(args); }
  int64_t cost() const { return kChunkPixels * kBlockChannels * args.P * 40; }
};

// rstd [H'] of the variance [H].
template <class T>
void write_rstd(const T* variance, int64_t H, double eps, T* out) {
  for (int64_t c = 0; c < H; ++c) out[c] = T(1) / std::sqrt(variance[c] + static_cast<T>(eps));
}

// Fills a.out, what is made of it, and, where they are the batch's `own`, mean and variance: stats [2, H].
template <class T>
void fill(Call<T>& call, T* stats, bool own, double eps) {
  RnnNode<T>& a = call.args;
  const int64_t count = chunks(a.B, 1), C = padded(a.H), block = count * 2 * kBlockChannels;
  const Memory<T> moments = memory<T>(own ? blocks(a) * block : 0);
  a.moments = own ? moments.get() : nullptr;
  in_parallel(call.parts(), call.cost(), [&](int64_t begin, int64_t end) {
    T* sums = scratch<T>(kRnnNodeScratch);
    std::memset(sums, 0, kRnnNodeScratch * sizeof(T));
    for (int64_t i = begin; i < end; ++i) kernels<T>().rnn_node(a, i, sums);
  });
  for (int64_t i = 0; i < (own ? blocks(a) : 0); ++i) {
    std::vector<int64_t> rows(count, chunk_rows(1));
    rows.back() = a.B - (count - 1) * chunk_rows(1);
    T* part = a.moments + i * block;
    kernels<T>().tree_moments(part, rows.data(), count, kBlockChannels);
    for (int64_t c = 0; c < kBlockChannels && i * kBlockChannels + c < a.H; ++c) {
      stats[i * kBlockChannels + c] = part[c];
      stats[a.H + i * kBlockChannels + c] = part[kBlockChannels + c] / static_cast<T>(a.B);
    }
  }
  std::vector<T> table(2 * C, T(0));
  std::memcpy(table.data(), stats, a.H * sizeof(T));
  write_rstd(stats + a.H, a.H, eps, table.data() + C);
  a.norm = table.data();
  in_parallel(a.B, a.H * 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) kernels<T>().rnn_node_normalise(a, b);
  });
}

std::tuple<Tensor, Tensor> rnn_node(const Tensor& gates, const Tensor& states, const Tensor& weights,
                                    const std::optional<Tensor>& norm, double eps) {
  check_arguments(gates, states, weights, eps);
  if (norm) {
    check_like(*norm, states, "norm");
    check_shape(*norm, {2, states.size(2)}, "norm");
  }
  return for_dtype(states, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(gates, states, weights);
    const int64_t B = states.size(1), H = states.size(2);
    Tensor out = empty(states, {B, H}), stats = torch::stable::new_empty(states, {norm ? 0 : 2, H});
    std::vector<T> given = norm ? values<T>(*norm) : std::vector<T>();
    call.args.out = written<T>(out);
    fill(call, norm ? given.data() : written<T>(stats), !norm, eps);
    return std::make_tuple(out, stats);
  });
}

// A tensor that is written: adjacent elements, apart from what is read.
template <class... Read>
void check_written(const Tensor& t, const Tensor& like, std::initializer_list<int64_t> sizes, const char* name,
                   const Read&... read) {
  check_like(t, like, name);
  check_shape(t, sizes, name);
  check(t.is_contiguous(), name, " must be contiguous");
  check_apart(t, name, {&read...});
}

void check_row(const Tensor& t, const Tensor& states, const char* name) {
  check_like(t, states, name);
  check_shape(t, {states.size(1), states.size(2)}, name);
}

void rnn_node_(const Tensor& out, const Tensor& masked, const Tensors& mean, const Tensor& stats, const Tensor& gates,
               const Tensor& states, const Tensor& weights, const std::optional<Tensor>& mask, bool own, double eps) {
  check_arguments(gates, states, weights, eps);
  const int64_t B = states.size(1), H = states.size(2);
  const Tensor& factors = mask ? *mask : weights;
  if (mask) check_row(*mask, states, "mask");
  check(mean.size() < 2, "mean must hold one tensor or none, got ", mean.size());
  check_written(out, states, {B, H}, "out", gates, states, weights, factors);
  check_written(masked, states, {B, H}, "masked", gates, states, weights, factors, out);
  for (const Tensor& t : mean) check_written(t, states, {B, H}, "mean", gates, states, weights, factors, out, masked);
  check_written(stats, states, {2, H}, "stats", gates, states, weights, factors, out, masked);
  for_dtype(states, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(gates, states, weights);
    RnnNode<T>& a = call.args;
    if (mask) a.mask = call.keep(*mask);
    a.out = written<T>(out), a.masked = written<T>(masked), a.mean = mean.empty() ? nullptr : written<T>(mean[0]);
    fill(call, written<T>(stats), own, eps);
  });
}

// The means [2, H'] of g and of g * out over the batch.
template <class T>
std::vector<T> gradient_means(RnnNode<T>& a, int64_t parts) {
  const int64_t count = chunks(a.B, 1), block = count * 2 * kBlockChannels, C = padded(a.H);
  std::vector<T> means(2 * C, T(0));
  const Memory<T> sums = memory<T>(blocks(a) * block);
  std::memset(sums.get(), 0, blocks(a) * block * sizeof(T));
  a.sums = sums.get();
  in_parallel(parts, kChunkPixels * kBlockChannels * 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels<T>().rnn_node_sums(a, i);
  });
  for (int64_t i = 0; i < blocks(a); ++i) {
    T* part = a.sums + i * block;
    kernels<T>().tree_sum(part, count, 2 * kBlockChannels, 2 * kBlockChannels);
    for (int64_t c = 0; c < kBlockChannels && i * kBlockChannels + c < a.H; ++c) {
      means[i * kBlockChannels + c] = part[c] / static_cast<T>(a.B);
      means[C + i * kBlockChannels + c] = part[kBlockChannels + c] / static_cast<T>(a.B);
    }
  }
  return means;
}

// Fills the gradients of gates and states and hands those of the weights [P, 4] over: take(index, gradient).
template <class T, class Take>
void fill_backward(Call<T>& call, const Tensor& variance, double eps, bool own, Take take) {
  RnnNode<T>& a = call.args;
  const int64_t count = chunks(a.B, 1), C = padded(a.H), width = a.P * kWeightSums * C;
  const std::vector<T> means = own ? gradient_means(a, call.parts()) : std::vector<T>(2 * C, T(0));
  std::vector<T> rstd(C, T(0));
  write_rstd(values<T>(variance).data(), a.H, eps, rstd.data());
  const Memory<T> sums = memory<T>(count * width);
  a.means = means.data(), a.rstd = rstd.data(), a.weight_sums = sums.get();
  in_parallel(call.parts(), 2 * call.cost(), [&](int64_t begin, int64_t end) {
    T* ds = scratch<T>(kRnnNodeScratch);
    for (int64_t i = begin; i < end; ++i) kernels<T>().rnn_node_backward(a, i, ds);
  });
  kernels<T>().tree_sum(a.weight_sums, count, width, width);
  for (int64_t j = 0; j < a.P; ++j) {
    T* rows = a.weight_sums + j * kWeightSums * C;
    for (int64_t i = 0; i < kWeightSums; ++i) kernels<T>().tree_sum(rows + i * C, a.H, 1, 1);
    for (int64_t k = 0; k < kActivations; ++k) take(j * kActivations + k, rows[k * C] + rows[kActivations * C]);
  }
}

void check_variance(const Tensor& variance, const Tensor& states) {
  check_like(variance, states, "variance");
  check_shape(variance, {states.size(2)}, "variance");
}

std::tuple<Tensor, Tensor, Tensor> rnn_node_backward(const Tensor& g, const Tensor& out, const Tensor& variance,
                                                     const Tensor& gates, const Tensor& states, const Tensor& weights,
                                                     double eps, bool own, const std::optional<Tensor>& base) {
  check_arguments(gates, states, weights, eps);
  const int64_t P = states.size(0), B = states.size(1), H = states.size(2);
  check_row(g, states, "g");
  check_row(out, states, "out");
  check_variance(variance, states);
  if (base) {
    check_like(*base, states, "base");
    check_shape(*base, {P, B, H}, "base");
  }
  return for_dtype(states, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(gates, states, weights);
    RnnNode<T>& a = call.args;
    a.g = call.keep(g), a.normal = call.keep(out);
    if (base) a.base = call.keep(*base);
    Tensor d_gates = empty(states, {P, B, 2 * H}), d_states = empty(states, {P, B, H});
    Tensor d_weights = torch::stable::new_empty(states, {P, kActivations});
    a.d_gates = written<T>(d_gates), a.d_states = written<T>(d_states);
    T* d = written<T>(d_weights);
    fill_backward(call, variance, eps, own, [&](int64_t i, T gradient) { d[i] = gradient; });
    return std::make_tuple(d_gates, d_states, d_weights);
  });
}

void rnn_node_backward_(const Tensor& d_gates, const Tensor& d_states, const Tensor& d_weights, const Tensor& g,
                        const Tensor& through, const std::optional<Tensor>& of_mean, const Tensor& out,
                        const Tensor& variance, const Tensor& gates, const Tensor& states, const Tensor& weights,
                        const std::optional<Tensor>& mask, double eps, bool own, bool accumulate) {
  check_arguments(gates, states, weights, eps);
  const int64_t P = states.size(0), B = states.size(1), H = states.size(2);
  check_row(g, states, "g");
  check_row(through, states, "through");
  check_row(out, states, "out");
  check_variance(variance, states);
  const Tensor &factors = mask ? *mask : g, &arriving = of_mean ? *of_mean : g;
  check_row(factors, states, "mask");
  check_row(arriving, states, "of_mean");
  check(!(of_mean && accumulate), "d_states are added to, or hold shares of of_mean: not both");
  check_written(d_gates, states, {P, B, 2 * H}, "d_gates", g, through, arriving, out, variance, gates, states, weights,
                factors, d_states);
  check_written(d_states, states, {P, B, H}, "d_states", g, through, arriving, out, variance, gates, states, weights,
                factors);
  check_like(d_weights, states, "d_weights");
  check_shape(d_weights, {-1, P, kActivations}, "d_weights");
  check(d_weights.size(0) > 0 && d_weights.stride(2) == 1 && (P == 1 || d_weights.stride(1) == kActivations),
        "d_weights must have adjacent parts, got ", shape{d_weights});
  for_dtype(states, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(gates, states, weights);
    RnnNode<T>& a = call.args;
    const Memory<T> sum = memory<T>(B * H);
    a.g = call.keep(g), a.through = call.keep(through), a.normal = call.keep(out), a.arriving = sum.get();
    if (of_mean) a.of_mean = call.keep(*of_mean);
    if (mask) a.mask = call.keep(*mask);
    in_parallel(B, H * 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) kernels<T>().rnn_node_arriving(a, b);
    });
    a.g = {a.arriving, 0, H, 0};
    a.d_gates = written<T>(d_gates), a.d_states = written<T>(d_states);
    // The mean's share in every state but the first is the node's own.
    if (of_mean) a.base = a.g, a.base_from = 1;
    if (accumulate) a.base = {a.d_states, B * H, H, 0};
    T* d = written<T>(d_weights);
    fill_backward(call, variance, eps, own, [&](int64_t i, T gradient) { d[i] += gradient; });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("rnn_node", TORCH_BOX(&rnn_node));
  m.impl("rnn_node_", TORCH_BOX(&rnn_node_));
  m.impl("rnn_node_backward", TORCH_BOX(&rnn_node_backward));
  m.impl("rnn_node_backward_", TORCH_BOX(&rnn_node_backward_));
}

}  // namespace dartsfast
