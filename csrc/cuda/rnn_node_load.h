// What forward and backward of rnn_node share on a device: a thread's element of a chunk, and the candidate there.
#pragma once

#include "../activations.h"
#include "../order.h"
#include "rnn_node.h"
#include "scalar.h"

namespace dartsfast::cuda {

// A block of threads has a chunk of 64 rows by 4 channels: 75 blocks of 300 channels already at a batch of 64, and
// 16 neighbouring bytes a row, the rest of whose sectors neighbouring blocks take from the second-level cache.
constexpr int kNodeChannels = 4, kNodeThreads = kChunkPixels * kNodeChannels;

struct NodePlace {
  int row, b, c;   // in the chunk, in the batch; channel
  int slot;        // channel of the block
  int rows;        // of the chunk
  bool here;
  template <class T>
  __device__ NodePlace(const NodeInputs<T>& a, int chunk, int block) {
    slot = threadIdx.x % kNodeChannels, row = threadIdx.x / kNodeChannels;
    const int first = chunk * static_cast<int>(kChunkPixels);
    b = first + row, c = block * kNodeChannels + slot;
    rows = a.B - first < kChunkPixels ? a.B - first : kChunkPixels;
    here = row < rows && c < a.H;
  }
};

// As csrc/cpu/rnn_node.kernel.h.
template <class T>
struct Candidate {
  using V = Scalar<T>;
  V c, tanh, relu, sigmoid, h, s, d, u;
  T w[kWeightSums];  // of the activations, then their sum

  __device__ Candidate(const NodeInputs<T>& a, int j, int b, int channel) {
    const T *gate = a.gates.at(j, b) + channel, *mix = a.weights + j * kActivations;
#pragma unroll
    for (int k = 0; k < kActivations; ++k) w[k] = mix[k];
    w[kActivations] = ((w[0] + w[1]) + w[2]) + w[3];
    c = Activations<V, T>(V::set(gate[0])).sigmoid();
    h = V::set(gate[a.H]);
    const Activations<V, T> f(h);
    tanh = f.tanh(), relu = h.relu(), sigmoid = f.sigmoid();
    s = V::set(a.states.at(j, b)[channel]);
    d = V::set(w[0]) * tanh;
    d = V::fma(V::set(w[1]), relu, d);
    d = V::fma(V::set(w[2]), sigmoid, d);
    d = V::fma(V::set(w[3]), h, d);
    u = V::set(w[4]) * s;
  }
};

// The interleaved sums of a chunk's rows, folded, of f(row) by 8 lanes next to each other; all 8 get it.
template <class T, class F>
__device__ T interleaved_rows(int rows, F add) {
  T sum = 0;
  for (int row = threadIdx.x % 8; row < rows; row += 8) sum = add(row, sum);
#pragma unroll
  for (int other = 1; other < 8; other *= 2) sum = sum + __shfl_xor_sync(~0u, sum, other);
  return sum;
}

inline int64_t node_blocks(int64_t channels) { return (channels + kNodeChannels - 1) / kNodeChannels; }

}  // namespace dartsfast::cuda
