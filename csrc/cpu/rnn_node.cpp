// rnn_node on the CPU; the contract is in dartsfast/ops/rnn_node.py.
#include "../rnn_node.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "cache.h"
#include "kernels.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_arguments(const Tensor& gates, const Tensor& states, const Tensor& weights, double eps) {
  check(states.is_cpu(), "states must be a CPU tensor");
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
    RnnNode<T>& a = call.args;
    const int64_t count = chunks(a.B, 1), C = padded(a.H), block = count * 2 * kBlockChannels;
    Tensor out = empty(states, {a.B, a.H}), stats = torch::stable::new_empty(states, {norm ? 0 : 2, a.H});
    const Memory<T> moments = memory<T>(norm ? 0 : blocks(a) * block);
    a.out = static_cast<T*>(out.mutable_data_ptr()), a.moments = norm ? nullptr : moments.get();
    in_parallel(call.parts(), call.cost(), [&](int64_t begin, int64_t end) {
      T* sums = scratch<T>(kRnnNodeScratch);
      std::memset(sums, 0, kRnnNodeScratch * sizeof(T));
      for (int64_t i = begin; i < end; ++i) kernels<T>().rnn_node(a, i, sums);
    });
    std::vector<T> both = norm ? values<T>(*norm) : std::vector<T>(2 * a.H);
    for (int64_t i = 0; i < (norm ? 0 : blocks(a)); ++i) {
      std::vector<int64_t> rows(count, chunk_rows(1));
      rows.back() = a.B - (count - 1) * chunk_rows(1);
      T* part = a.moments + i * block;
      kernels<T>().tree_moments(part, rows.data(), count, kBlockChannels);
      for (int64_t c = 0; c < kBlockChannels && i * kBlockChannels + c < a.H; ++c) {
        both[i * kBlockChannels + c] = part[c];
        both[a.H + i * kBlockChannels + c] = part[kBlockChannels + c] / static_cast<T>(a.B);
      }
    }
    if (!norm) std::memcpy(stats.mutable_data_ptr(), both.data(), both.size() * sizeof(T));
    std::vector<T> table(2 * C, T(0));
    std::memcpy(table.data(), both.data(), a.H * sizeof(T));
    write_rstd(both.data() + a.H, a.H, eps, table.data() + C);
    a.norm = table.data();
    in_parallel(a.B, a.H * 2, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) kernels<T>().rnn_node_normalise(a, b);
    });
    return std::make_tuple(out, stats);
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

std::tuple<Tensor, Tensor, Tensor> rnn_node_backward(const Tensor& g, const Tensor& out, const Tensor& variance,
                                                     const Tensor& gates, const Tensor& states, const Tensor& weights,
                                                     double eps, bool own, const std::optional<Tensor>& base) {
  check_arguments(gates, states, weights, eps);
  const int64_t P = states.size(0), B = states.size(1), H = states.size(2);
  for (const auto& [t, name] : {std::make_pair(&g, "g"), std::make_pair(&out, "out")}) {
    check_like(*t, states, name);
    check_shape(*t, {B, H}, name);
  }
  check_like(variance, states, "variance");
  check_shape(variance, {H}, "variance");
  if (base) {
    check_like(*base, states, "base");
    check_shape(*base, {P, B, H}, "base");
  }
  return for_dtype(states, [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(gates, states, weights);
    RnnNode<T>& a = call.args;
    const int64_t count = chunks(B, 1), C = padded(H), width = P * kWeightSums * C;
    a.g = call.keep(g), a.normal = call.keep(out);
    if (base) a.base = call.keep(*base);
    Tensor d_gates = empty(states, {P, B, 2 * H}), d_states = empty(states, {P, B, H});
    Tensor d_weights = torch::stable::new_empty(states, {P, kActivations});
    a.d_gates = static_cast<T*>(d_gates.mutable_data_ptr()), a.d_states = static_cast<T*>(d_states.mutable_data_ptr());
    const std::vector<T> means = own ? gradient_means(a, call.parts()) : std::vector<T>(2 * C, T(0));
    std::vector<T> rstd(C, T(0));
    write_rstd(values<T>(variance).data(), H, eps, rstd.data());
    const Memory<T> sums = memory<T>(count * width);
    a.means = means.data(), a.rstd = rstd.data(), a.weight_sums = sums.get();
    in_parallel(call.parts(), 2 * call.cost(), [&](int64_t begin, int64_t end) {
      T* ds = scratch<T>(kRnnNodeScratch);
      for (int64_t i = begin; i < end; ++i) kernels<T>().rnn_node_backward(a, i, ds);
    });
    kernels<T>().tree_sum(a.weight_sums, count, width, width);
    T* d = static_cast<T*>(d_weights.mutable_data_ptr());
    for (int64_t j = 0; j < P; ++j) {
      T* rows = a.weight_sums + j * kWeightSums * C;
      for (int64_t i = 0; i < kWeightSums; ++i) kernels<T>().tree_sum(rows + i * C, H, 1, 1);
      for (int64_t k = 0; k < kActivations; ++k) d[j * kActivations + k] = rows[k * C] + rows[kActivations * C];
    }
    return std::make_tuple(d_gates, d_states, d_weights);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) {
  m.impl("rnn_node", TORCH_BOX(&rnn_node));
  m.impl("rnn_node_backward", TORCH_BOX(&rnn_node_backward));
}

}  // namespace dartsfast
