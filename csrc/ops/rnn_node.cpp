// rnn_node; the contract is in dartsfast/ops/rnn_node.py.
#include "rnn_node.call.h"

#include <optional>
#include <tuple>

#include "cache.h"
#include "served.h"
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

// The tensors that are read, with copies of those that the kernels cannot read as they are.
struct Given {
  Tensors kept;

  // [P, B, C] or [B, C] with adjacent channels.
  Array rows(const Tensor& t) {
    const int64_t last = t.dim() - 1;
    return array(kept.emplace_back(t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t)));
  }
  Array rows(const std::optional<Tensor>& t) { return t ? rows(*t) : Array(); }
  template <class T>
  const T* all(const Tensor& t) {
    return read<T>(kept.emplace_back(dense(t)));
  }
  template <class T>
  RnnNodeInputs<T> inputs(const Tensor& gates, const Tensor& states, const Tensor& weights, double eps) {
    return {rows(gates), rows(states), all<T>(weights), static_cast<T>(eps)};
  }
};

template <class T>
void run(const RnnNodeInputs<T>& inputs, const RnnNodeOutputs<T>& outputs) {
  RnnNodeCall<T> call(inputs, outputs);
  run_section({call.sums()});
  run_section({call.moments()});
  run_section({call.normalise()});
}

template <class T>
void run_backward(const RnnNodeInputs<T>& inputs, const RnnNodeGradients<T>& gradients) {
  RnnNodeBackwardCall<T> call(inputs, gradients);
  run_section({call.arriving()});
  run_section({call.sums()});
  run_section({call.means()});
  run_section({call.gradients()});
  run_section({call.finish()});
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
    Given given;
    const int64_t B = states.size(1), H = states.size(2);
    Tensor out = empty(states, {B, H}), stats = torch::stable::new_empty(states, {norm ? 0 : 2, H});
    RnnNodeOutputs<T> outputs{written<T>(out)};
    if (norm) {
      outputs.given = given.all<T>(*norm);
    } else {
      outputs.stats = written<T>(stats);
    }
    run(given.inputs<T>(gates, states, weights, eps), outputs);
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
    Given given;
    RnnNodeOutputs<T> outputs{written<T>(out), mean.empty() ? nullptr : written<T>(mean[0]), written<T>(masked),
                              given.rows(mask)};
    outputs.stats = own ? written<T>(stats) : nullptr;
    outputs.given = own ? nullptr : written<T>(stats);
    run(given.inputs<T>(gates, states, weights, eps), outputs);
  });
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
    Given given;
    Tensor d_gates = empty(states, {P, B, 2 * H}), d_states = empty(states, {P, B, H});
    Tensor d_weights = torch::stable::new_empty(states, {P, kActivations});
    RnnNodeGradients<T> gradients{given.rows(g), given.rows(out), given.all<T>(variance), own};
    gradients.base = given.rows(base);
    gradients.d_gates = written<T>(d_gates), gradients.d_states = written<T>(d_states);
    gradients.d_weights = written<T>(d_weights);
    run_backward(given.inputs<T>(gates, states, weights, eps), gradients);
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
    Given given;
    RnnNodeGradients<T> gradients{given.rows(g), given.rows(out), given.all<T>(variance), own,
                                  given.rows(through), given.rows(of_mean), given.rows(mask)};
    if (accumulate) gradients.base = array(d_states);
    gradients.d_gates = written<T>(d_gates), gradients.d_states = written<T>(d_states);
    gradients.d_weights = written<T>(d_weights), gradients.accumulate = true;
    run_backward(given.inputs<T>(gates, states, weights, eps), gradients);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("rnn_node", DARTSFAST_BOX(rnn_node));
  m.impl("rnn_node_", DARTSFAST_BOX(rnn_node_));
  m.impl("rnn_node_backward", DARTSFAST_BOX(rnn_node_backward));
  m.impl("rnn_node_backward_", DARTSFAST_BOX(rnn_node_backward_));
}

}  // namespace dartsfast
