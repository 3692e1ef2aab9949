// What the kernels of rnn_node are given; the contract is in dartsfast/ops/rnn_node.py.
#pragma once

#include "array.h"

namespace dartsfast {

// A node is computed in blocks of channels, each with the chunks of order.h along the batch (pixels of width 1).
constexpr int64_t kBlockChannels = 64;
constexpr int64_t kActivations = 4;  // tanh, relu, sigmoid, identity
constexpr int64_t kWeightSums = kActivations + 1;

template <class T>
struct RnnNode {
  int64_t P, B, H;
  Image<const T> gates;   // [P, B, 2H] as n, h; channels c then h
  Image<const T> states;  // [P, B, H]
  const T* weights;       // [P, 5]: of the activations, then their sum q
  Image<const T> mask;    // [B, H] as h, factors of what enters products; null data: 1
  T* out;                 // [B, H]: the sum, then normalised
  T* mean;                // [B, H] of all states but the first, this node included; null: not asked for
  T* masked;              // [B, H]: the mean, or else out, times mask; null: not asked for
  T* moments;             // [blocks, chunks, 2, kBlockChannels], null where the norm is given
  const T* norm;          // [2, H'] mean and 1 / std; forward: read by rnn_node_normalise
  // Backward.
  Image<const T> g;       // [B, H] as h
  Image<const T> through, of_mean;  // [B, H] as h: what rnn_node_arriving adds to g; null data of the second: none
  T* arriving;            // [B, H], what it makes of them
  Image<const T> normal;  // [B, H], the output of the forward
  Image<const T> base;    // [P, B, H]; null data: zero
  int64_t base_from;      // the first predecessor that has a base
  const T* rstd;          // [H']
  const T* means;         // [2, H'] of g and of g * out; zeros where the norm was given
  T* sums;                // [blocks, chunks, 2, kBlockChannels]
  T* d_gates;             // [P, B, 2H]
  T* d_states;            // [P, B, H]
  T* weight_sums;         // [chunks, P, 5, H']: gradients of the weights and of q, a channel
};

template <class T>
int64_t blocks(const RnnNode<T>& a) {
  return (a.H + kBlockChannels - 1) / kBlockChannels;
}

// Chunk and block of channels number `item` of chunks(B, 1) * blocks.
template <class T>
struct Part {
  int64_t chunk, block, b, rows, c, width;
  Part(const RnnNode<T>& a, int64_t item) {
    const int64_t step = chunk_rows(1);
    chunk = item / blocks(a), block = item % blocks(a);
    b = chunk * step, rows = b + step <= a.B ? step : a.B - b;
    c = block * kBlockChannels, width = c + kBlockChannels <= a.H ? kBlockChannels : a.H - c;
  }
};

// What forward and backward are both given: rows with adjacent channels.
template <class T>
struct RnnNodeInputs {
  Array gates;       // [P, B, 2H]
  Array states;      // [P, B, H]
  const T* weights;  // [P, 4]
  T eps;
};

// What forward writes.
template <class T>
struct RnnNodeOutputs {
  T* out;                     // [B, H]
  T *mean = nullptr, *masked = nullptr;  // [B, H]: mean of all states but the first; it, or else out, times mask
  Array mask;                 // [B, H], or none
  T* stats = nullptr;         // [2, H], the batch's own mean and variance; null where they are given
  const T* given = nullptr;   // [2, H]
};

// What backward is given beside, and what it writes.
template <class T>
struct RnnNodeGradients {
  Array g, out;                    // [B, H]; out of the forward
  const T* variance;               // [H]
  bool own;                        // whether mean and variance were the batch's own
  Array through, of_mean, mask;    // [B, H], or none: what reads the masked copy, and the mean, adds to g
  Array base;                      // [P, B, H], what d_states is added to, may be its very memory; or none
  T *d_gates, *d_states;           // [P, B, 2H], [P, B, H]
  T* d_weights;                    // [P, 4]
  bool accumulate = false;         // whether d_weights are added to
};

// Elements of scratch memory that a thread needs for a part.
constexpr int64_t kRnnNodeScratch = (kChunkPixels + kWeightSums) * kBlockChannels;

}  // namespace dartsfast
