// rnn_node, backward. What arrives at the node (from what reads it, its masked copy and the mean of all states) is
// put together wherever it is loaded, three or four loads from the second-level cache instead of a launch.
//
// Where the statistics were the batch's own, sums over the batch come first: chunks in one launch, their tree in the
// next. Then a block has a chunk of 64 rows by 4 channels of one predecessor: its gates' and state's gradients are
// independent of each other's, 600 blocks for 8 predecessors at a batch of 64. The weights' gradients are chains down the
// chunk's rows, in the order of csrc/cpu/rnn_node.kernel.h: factors go through shared memory, and a thread of 20 has
// a chain, about as long as the other threads' 250 instructions took; the last launch adds chunks, then channels.
#include "rnn_node.h"

#include "group.h"
#include "rnn_node_load.h"
#include "tree.h"
#include "../norm_stats.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256;

// The gradient that arrives at element (b, c) of the node.
template <class T>
__device__ T arriving(const NodeBackward<T>& a, int b, int c) {
  T g = a.g.at(0, b)[c];
  if (!a.through.data) return g;
  T through = a.through.at(0, b)[c];
  if (a.mask.data) through = through * a.mask.at(0, b)[c];
  g = g + through;
  return a.of_mean.data ? (a.of_mean.at(0, b)[c] + g) / static_cast<T>(a.in.P) : g;
}

template <class T>
__global__ void __launch_bounds__(kNodeThreads) rnn_node_gradient_sums_kernel(const __grid_constant__ NodeBackward<T> a) {
  __shared__ T tile[2][kNodeChannels][kChunkPixels + 1];
  const int H = a.in.H, chunk = blockIdx.y;
  const NodePlace place(a.in, chunk, blockIdx.x);
  if (place.here) {
    tile[0][place.slot][place.row] = arriving(a, place.b, place.c);
    tile[1][place.slot][place.row] = a.out.at(0, place.b)[place.c];
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int slot = threadIdx.x / 8, c = blockIdx.x * kNodeChannels + slot;
  const int rows = c < H ? place.rows : 0;
  const T *const g = tile[0][slot], *const out = tile[1][slot];
  const T sum = interleaved_rows<T>(rows, [&](int row, T s) { return s + g[row]; });
  const T products = interleaved_rows<T>(rows, [&](int row, T s) { return fused(g[row], out[row], s); });
  if (c >= H || threadIdx.x % 8 != 0) return;
  T* const part = a.sums + static_cast<int64_t>(chunk) * 2 * H + c;
  part[0] = sum, part[H] = products;
}

// The means [2, H], to the place of the first chunk.
template <class T>
__global__ void __launch_bounds__(kThreads) rnn_node_gradient_means_kernel(const __grid_constant__ NodeBackward<T> a) {
  const int width = 2 * a.in.H, columns = 32, lanes = kThreads / columns;
  const int c = blockIdx.x * columns + threadIdx.x % columns, lane = threadIdx.x / columns;
  tree(Sums<T>{a.sums + c, width}, c < width, static_cast<int>(chunks(a.in.B, 1)), lane, lanes);
  if (c < width && lane == 0) a.sums[c] = a.sums[c] / static_cast<T>(a.in.B);
}

// What the gradients of a predecessor's weights are made of.
template <class T>
struct Factors {
  T dd[kNodeThreads], du[kNodeThreads], s[kNodeThreads];
  T activation[kActivations][kNodeThreads];
};

// The gradient of the sum, through batch norm.
template <class T>
__device__ T through_norm(const NodeBackward<T>& a, int b, int c) {
  const int H = a.in.H;
  const T mean = a.sums ? a.sums[c] : T(0), slope = a.sums ? a.sums[H + c] : T(0);
  return ((arriving(a, b, c) - mean) - a.out.at(0, b)[c] * slope) * reciprocal_deviation(a.variance[c], a.eps);
}

// An element of a predecessor's gradients; what its weights' are made of goes to place `i`.
template <class T>
__device__ void element(const NodeBackward<T>& a, int j, int b, int channel, Factors<T>& factors, int i) {
  using V = Scalar<T>;
  const int64_t H = a.in.H, row = static_cast<int64_t>(j) * a.in.B + b;
  const Candidate<T> k(a.in, j, b, channel);
  const V one = V::set(1), ds = V::set(through_norm(a, b, channel)), dd = ds * k.c, du = ds - dd;
  V slope = V::fma(V::set(k.w[0]), one - k.tanh * k.tanh, V::set(k.w[3]));
  slope = V::fma(V::set(k.w[2]), k.sigmoid * (one - k.sigmoid), slope);
  slope = slope + V::set(k.w[1]).where_positive(k.h);
  T *const d_gate = a.d_gates + row * 2 * H + channel, *const d_state = a.d_states + row * H + channel;
  T base = 0;
  if (a.base.data) base = a.base.at(j, b)[channel];
  // The mean's share in every state but the first is the node's own.
  if (a.of_mean.data && j > 0) base = arriving(a, b, channel);
  d_gate[0] = (((ds * (k.d - k.u)) * k.c) * (one - k.c)).v;
  d_gate[H] = (dd * slope).v;
  d_state[0] = fused(k.w[4], du.v, base);
  factors.dd[i] = dd.v, factors.du[i] = du.v, factors.s[i] = k.s.v;
  factors.activation[0][i] = k.tanh.v, factors.activation[1][i] = k.relu.v;
  factors.activation[2][i] = k.sigmoid.v, factors.activation[3][i] = k.h.v;
}

template <class T>
__global__ void __launch_bounds__(kNodeThreads) rnn_node_gradients_kernel(const __grid_constant__ NodeBackward<T> a) {
  __shared__ Factors<T> factors;
  const int chunk = blockIdx.y, j = blockIdx.z;
  const NodePlace place(a.in, chunk, blockIdx.x);
  if (place.here) element(a, j, place.b, place.c, factors, threadIdx.x);
  __syncthreads();
  const int which = threadIdx.x / kNodeChannels;
  if (which >= kWeightSums || place.c >= a.in.H) return;
  const T* const x = which < kActivations ? factors.dd : factors.du;
  const T* const y = which < kActivations ? factors.activation[which] : factors.s;
  T sum = 0;
  for (int i = place.slot; i < place.rows * kNodeChannels; i += kNodeChannels) sum = fused(x[i], y[i], sum);
  const int64_t row = (static_cast<int64_t>(chunk) * a.in.P + j) * kWeightSums + which;
  a.weight_sums[row * a.in.H + place.c] = sum;
}

// The gradients of a predecessor's weights: chunks, then channels.
template <class T>
__global__ void __launch_bounds__(kThreads) rnn_node_finish_kernel(const __grid_constant__ NodeBackward<T> a) {
  const int H = a.in.H, width = kWeightSums * H, columns = 32, lanes = kThreads / columns;
  T* const rows = a.weight_sums + static_cast<int64_t>(blockIdx.x) * width;
  for (int first = 0; first < width; first += columns) {
    const int c = first + threadIdx.x % columns;
    tree(Sums<T>{rows + c, static_cast<int64_t>(a.in.P) * width}, c < width, static_cast<int>(chunks(a.in.B, 1)),
         threadIdx.x / columns, lanes);
  }
  __syncthreads();  // with one chunk there was none
  for (int i = 0; i < kWeightSums; ++i) tree(Sums<T>{rows + i * H, 1}, true, H, threadIdx.x, kThreads);
  __syncthreads();
  if (threadIdx.x >= kActivations) return;
  T& d = a.d_weights[blockIdx.x * kActivations + threadIdx.x];
  const T gradient = rows[threadIdx.x * H] + rows[kActivations * H];
  d = a.accumulate ? d + gradient : gradient;
}

}  // namespace

template <class T>
void rnn_node_gradient_sums(const std::vector<const NodeBackward<T>*>& calls, Stream stream) {
  for (const NodeBackward<T>* call : calls) {
    const dim3 grid(node_blocks(call->in.H), chunks(call->in.B, 1));
    launch(rnn_node_gradient_sums_kernel<T>, grid, dim3(kNodeThreads), 0, stream, *call);
  }
}

template <class T>
void rnn_node_gradient_means(const std::vector<const NodeBackward<T>*>& calls, Stream stream) {
  for (const NodeBackward<T>* call : calls) {
    const dim3 grid(blocks_of(2 * call->in.H, 32));
    launch(rnn_node_gradient_means_kernel<T>, grid, dim3(kThreads), 0, stream, *call);
  }
}

template <class T>
void rnn_node_gradients(const std::vector<const NodeBackward<T>*>& calls, Stream stream) {
  for (const NodeBackward<T>* call : calls) {
    const dim3 grid(node_blocks(call->in.H), chunks(call->in.B, 1), call->in.P);
    launch(rnn_node_gradients_kernel<T>, grid, dim3(kNodeThreads), 0, stream, *call);
  }
}

template <class T>
void rnn_node_finish(const std::vector<const NodeBackward<T>*>& calls, Stream stream) {
  for (const NodeBackward<T>* call : calls) {
    launch(rnn_node_finish_kernel<T>, dim3(call->in.P), dim3(kThreads), 0, stream, *call);
  }
}

template void rnn_node_gradient_sums(const std::vector<const NodeBackward<float>*>&, Stream);
template void rnn_node_gradient_sums(const std::vector<const NodeBackward<double>*>&, Stream);
template void rnn_node_gradient_means(const std::vector<const NodeBackward<float>*>&, Stream);
template void rnn_node_gradient_means(const std::vector<const NodeBackward<double>*>&, Stream);
template void rnn_node_gradients(const std::vector<const NodeBackward<float>*>&, Stream);
template void rnn_node_gradients(const std::vector<const NodeBackward<double>*>&, Stream);
template void rnn_node_finish(const std::vector<const NodeBackward<float>*>&, Stream);
template void rnn_node_finish(const std::vector<const NodeBackward<double>*>&, Stream);

}  // namespace dartsfast::cuda
