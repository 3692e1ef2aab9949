// rnn_node, forward: a thread has an element of the node and goes through its predecessors, about 150 instructions each,
// of which two sigmoids and a tanh; that, at 7 bytes of gates and states for 100 instructions, and how few elements
// there are (a batch of 64 by 300 channels is 19,200 threads) bound it, not memory. Mean and variance need a whole
// column: chunks in the first launch, their tree in the second, elements again in the third, which also makes the mean
// of all states and the masked copy. Backward: rnn_node_backward.cu.
#include "rnn_node.h"

#include "group.h"
#include "rnn_node_load.h"
#include "../norm_stats.h"

namespace dartsfast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kNodeThreads) rnn_node_sums_kernel(const __grid_constant__ NodeForward<T> a) {
  using V = Scalar<T>;
  __shared__ T tile[kNodeChannels][kChunkPixels + 1];
  const int H = a.in.H, chunk = blockIdx.y;
  const NodePlace place(a.in, chunk, blockIdx.x);
  if (place.here) {
    V sum = V::zero();
    for (int j = 0; j < a.in.P; ++j) {
      const Candidate<T> k(a.in, j, place.b, place.c);
      sum = sum + V::fma(k.c, k.d - k.u, k.u);
    }
    a.out[static_cast<int64_t>(place.b) * H + place.c] = sum.v;
    tile[place.slot][place.row] = sum.v;
  }
  if (!a.parts) return;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int slot = threadIdx.x / 8, c = blockIdx.x * kNodeChannels + slot;
  const int rows = c < H ? place.rows : 0;
  const T mean = interleaved_rows<T>(rows, [&](int row, T s) { return s + tile[slot][row]; }) / static_cast<T>(place.rows);
  const T squares = interleaved_rows<T>(rows, [&](int row, T s) {
    const T d = tile[slot][row] - mean;
    return fused(d, d, s);
  });
  if (c >= H || threadIdx.x % 8 != 0) return;
  T* const part = a.parts + static_cast<int64_t>(chunk) * 2 * H + c;
  part[0] = mean, part[H] = squares;
}

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) rnn_node_normalise_kernel(const __grid_constant__ NodeForward<T> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int H = a.in.H, c = i % H;
  const int64_t b = i / H;
  if (b >= a.in.B) return;
  T result = (a.out[i] - a.norm[c]) * reciprocal_deviation(a.norm[H + c], a.eps);
  a.out[i] = result;
  if (!a.masked) return;
  if (a.mean) {
    const auto state = [&](int j) { return a.in.states.at(j, b)[c]; };
    if (a.in.P > 1) {
      T sum = state(1);
      for (int j = 2; j < a.in.P; ++j) sum = sum + state(j);
      result = sum + result;
    }
    result = result / static_cast<T>(a.in.P);
    a.mean[i] = result;
  }
  if (a.mask.data) result = result * a.mask.at(0, b)[c];
  a.masked[i] = result;
}

}  // namespace

template <class T>
void rnn_node_sums(const std::vector<const NodeForward<T>*>& calls, Stream stream) {
  for (const NodeForward<T>* call : calls) {
    const dim3 grid(node_blocks(call->in.H), chunks(call->in.B, 1));
    launch(rnn_node_sums_kernel<T>, grid, dim3(kNodeThreads), 0, stream, *call);
  }
}

template <class T>
void rnn_node_normalise(const std::vector<const NodeForward<T>*>& calls, Stream stream) {
  for (const NodeForward<T>* call : calls) {
    const dim3 grid(blocks_of(static_cast<int64_t>(call->in.B) * call->in.H, kThreads));
    launch(rnn_node_normalise_kernel<T>, grid, dim3(kThreads), 0, stream, *call);
  }
}

template void rnn_node_sums(const std::vector<const NodeForward<float>*>&, Stream);
template void rnn_node_sums(const std::vector<const NodeForward<double>*>&, Stream);
template void rnn_node_normalise(const std::vector<const NodeForward<float>*>&, Stream);
template void rnn_node_normalise(const std::vector<const NodeForward<double>*>&, Stream);

}  // namespace dartsfast::cuda
