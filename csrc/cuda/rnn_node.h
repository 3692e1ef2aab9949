// What the kernels of rnn_node are given on a device. Rows have adjacent channels.
#pragma once

#include <cstdint>
#include <vector>

#include "../rnn_node.h"
#include "runtime.h"

namespace dartsfast::cuda {

// Rows [P, B, C] or [B, C]: elements from one predecessor, and from one batch element, to the next.
template <class T>
struct Rows {
  const T* data;  // null: none
  int64_t j, b;
  DARTSFAST_BOTH const T* at(int64_t predecessor, int64_t row) const { return data + predecessor * j + row * b; }
};

template <class T>
struct NodeInputs {
  int32_t P, B, H;
  Rows<T> gates, states;
  const T* weights;  // [P, 4]
};

template <class T>
struct NodeForward {
  NodeInputs<T> in;
  T eps;
  T* out;              // [B, H]: the sum, then normalised
  T *mean, *masked;    // [B, H], null: not asked for
  Rows<T> mask;
  T* parts;            // [chunks, 2, H] moments of chunks, null where the norm is given
  const T* norm;       // [2, H] mean and variance
};

template <class T>
struct NodeBackward {
  NodeInputs<T> in;
  T eps;
  Rows<T> g, through, of_mean, mask;  // what arrives; null of `through`: g alone
  Rows<T> out;                        // of the forward
  const T* variance;                  // [H]
  T* sums;                            // [chunks, 2, H] of g and of g * out; null where the norm was given
  Rows<T> base;                       // what d_states are added to
  T *d_gates, *d_states;              // [P, B, 2H], [P, B, H]
  T* weight_sums;                     // [chunks, P, 5, H]: gradients of the weights and of their sum, a channel
  T* d_weights;                       // [P, 4]
  bool accumulate;                    // whether d_weights are added to
};

template <class T>
void rnn_node_sums(const std::vector<const NodeForward<T>*>& calls, Stream stream);
template <class T>
void rnn_node_normalise(const std::vector<const NodeForward<T>*>& calls, Stream stream);

template <class T>
void rnn_node_gradient_sums(const std::vector<const NodeBackward<T>*>& calls, Stream stream);
template <class T>
void rnn_node_gradient_means(const std::vector<const NodeBackward<T>*>& calls, Stream stream);
template <class T>
void rnn_node_gradients(const std::vector<const NodeBackward<T>*>& calls, Stream stream);
template <class T>
void rnn_node_finish(const std::vector<const NodeBackward<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
