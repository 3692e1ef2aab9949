// rnn_node on given memory of a device. A call must outlive the sections that its work runs in.
#pragma once

#include <vector>

#include "device_memory.h"
#include "moments.h"
#include "rnn_node.h"
#include "section.h"

namespace dartsfast {

// Rows [B, C] or [P, B, C]; none where there is no data.
template <class T>
cuda::Rows<T> node_rows(const Array& a) {
  return {static_cast<const T*>(a.data), a.dim == 3 ? a.stride[0] : 0, a.stride[a.dim == 3 ? 1 : 0]};
}

template <class T>
cuda::NodeInputs<T> node_inputs(const RnnNodeInputs<T>& in) {
  const auto size = [&](int i) { return static_cast<int32_t>(in.states.size[i]); };
  return {size(0), size(1), size(2), node_rows<T>(in.gates), node_rows<T>(in.states), in.weights};
}

template <class T>
class RnnNodeCall {
 public:
  RnnNodeCall(const RnnNodeInputs<T>& in, const RnnNodeOutputs<T>& out)
      : args_{node_inputs(in), in.eps, out.out, out.mean, out.masked, node_rows<T>(out.mask), nullptr, out.given} {
    if (!out.stats) return;
    const int32_t B = args_.in.B, H = args_.in.H;
    parts_ = Memory<T>(chunks(B, 1) * 2 * H);
    args_.parts = parts_.get(), args_.norm = out.stats;
    moments_.push_back({1, B, 1, H, args_.parts, out.stats, out.stats + H});
  }
  RnnNodeCall(const RnnNodeCall&) = delete;

  Work sums() { return work<cuda::NodeForward<T>, cuda::rnn_node_sums<T>>(args_); }
  Work moments() { return work<cuda::ChunkMoments<T>, cuda::merge_moments<T>>(moments_); }
  Work normalise() { return work<cuda::NodeForward<T>, cuda::rnn_node_normalise<T>>(args_); }

 private:
  cuda::NodeForward<T> args_;
  Memory<T> parts_;
  std::vector<cuda::ChunkMoments<T>> moments_;
};

template <class T>
class RnnNodeBackwardCall {
 public:
  RnnNodeBackwardCall(const RnnNodeInputs<T>& in, const RnnNodeGradients<T>& out) {
    const auto rows = [](const Array& a) { return node_rows<T>(a); };
    args_ = {node_inputs(in), in.eps, rows(out.g), rows(out.through), rows(out.of_mean), rows(out.mask), rows(out.out),
             out.variance};
    const int64_t count = chunks(args_.in.B, 1), H = args_.in.H;
    if (out.own) {
      sums_ = Memory<T>(count * 2 * H);
      args_.sums = sums_.get();
    }
    weight_sums_ = Memory<T>(count * args_.in.P * kWeightSums * H);
    args_.base = rows(out.base), args_.d_gates = out.d_gates, args_.d_states = out.d_states;
    args_.weight_sums = weight_sums_.get(), args_.d_weights = out.d_weights, args_.accumulate = out.accumulate;
  }
  RnnNodeBackwardCall(const RnnNodeBackwardCall&) = delete;

  // Nothing: what arrives is put together where it is loaded.
  Work arriving() { return {}; }
  Work sums() { return own(work<cuda::NodeBackward<T>, cuda::rnn_node_gradient_sums<T>>(args_)); }
  Work means() { return own(work<cuda::NodeBackward<T>, cuda::rnn_node_gradient_means<T>>(args_)); }
  Work gradients() { return work<cuda::NodeBackward<T>, cuda::rnn_node_gradients<T>>(args_); }
  Work finish() { return work<cuda::NodeBackward<T>, cuda::rnn_node_finish<T>>(args_); }

 private:
  // Only where the statistics were the batch's own.
  Work own(const Work& work) const { return args_.sums ? work : Work(); }

  cuda::NodeBackward<T> args_;
  Memory<T> sums_, weight_sums_;
};

}  // namespace dartsfast
