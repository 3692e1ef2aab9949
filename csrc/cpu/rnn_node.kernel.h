// rnn_node: a chunk of the batch by a block of channels at a time.
#pragma once

#include "../activations.h"
#include "../rnn_node.h"
#include "pair.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

// Rows of a block of channels lie apart, so the hardware does not see which are next: they are asked for.
constexpr int64_t kRowsAhead = 2;

// The candidate of a predecessor and what it is made of, in V, a Vec or a Pair.
template <class V, class T>
struct Candidate {
  V c, tanh, relu, sigmoid, h, s, d, u;

  template <class Left>
  Candidate(const RnnNode<T>& a, int64_t j, int64_t b, int64_t channel, const T* w, Left left) {
    const T *gate = a.gates.at(j, b) + channel, *state = a.states.at(j, b) + channel;
    const T* next = gate + kRowsAhead * a.gates.h;
    prefetch<false>(next, sizeof(V)), prefetch<false>(next + a.H, sizeof(V));
    prefetch<false>(state + kRowsAhead * a.states.h, sizeof(V));
    const V pre = load_channels<V>(gate, left);
    c = Activations<V, T>(pre).sigmoid();
    h = load_channels<V>(gate + a.H, left);
    const Activations<V, T> f(h);
    tanh = f.tanh(), relu = h.relu(), sigmoid = f.sigmoid();
    s = load_channels<V>(state, left);
    d = V::set(w[0]) * tanh;
    d = V::fma(V::set(w[1]), relu, d);
    d = V::fma(V::set(w[2]), sigmoid, d);
    d = V::fma(V::set(w[3]), h, d);
    u = V::set(w[4]) * s;
  }
};

// Scratch memory: the sums, [chunk, kBlockChannels].
template <class T>
void rnn_node_part(const RnnNode<T>& a, int64_t item, T* memory) {
  const Part<T> part(a, item);
  for (int64_t b = 0; b < part.rows; ++b) {
    each_pair<T>(part.width, [&](int64_t c, auto left, auto v) {
      using V = decltype(v);
      V sum = V::zero();
      for (int64_t j = 0; j < a.P; ++j) {
        const Candidate<V, T> k(a, j, part.b + b, part.c + c, a.weights + j * kWeightSums, left);
        sum = sum + V::fma(k.c, k.d - k.u, k.u);
      }
      sum.store(memory + b * kBlockChannels + c);
      store_channels(sum, a.out + (part.b + b) * a.H + part.c + c, left);
    });
  }
  if (!a.moments) return;
  T* moments = a.moments + (part.block * chunks(a.B, 1) + part.chunk) * 2 * kBlockChannels;
  chunk_moments<T>(memory, kBlockChannels, part.rows, kBlockChannels, moments);
}

template <class T>
void rnn_node_normalise(const RnnNode<T>& a, int64_t b) {
  using V = Vec<T>;
  T* row = a.out + b * a.H;
  each_register<T>(a.H, [&](int64_t c, auto left) {
    const V mean = V::load(a.norm + c), rstd = V::load(a.norm + padded(a.H) + c);
    V result = (load_channels(row + c, left) - mean) * rstd;
    store_channels(result, row + c, left);
    if (!a.masked) return;
    if (a.mean) {
      const auto state = [&](int64_t j) { return load_channels(a.states.at(j, b) + c, left); };
      if (a.P > 1) {
        V sum = state(1);
        for (int64_t j = 2; j < a.P; ++j) sum = sum + state(j);
        result = sum + result;
      }
      result = result / V::set(static_cast<T>(a.P));
      store_channels(result, a.mean + b * a.H + c, left);
    }
    if (a.mask.data) result = result * load_channels(a.mask.at(0, b) + c, left);
    store_channels(result, a.masked + b * a.H + c, left);
  });
}

// The gradient that arrives at a node, from what reads it and what reads its masked copy.
template <class T>
void rnn_node_arriving(const RnnNode<T>& a, int64_t b) {
  using V = Vec<T>;
  each_register<T>(a.H, [&](int64_t c, auto left) {
    V through = load_channels(a.through.at(0, b) + c, left);
    if (a.mask.data) through = through * load_channels(a.mask.at(0, b) + c, left);
    V sum = load_channels(a.g.at(0, b) + c, left) + through;
    if (a.of_mean.data) sum = (load_channels(a.of_mean.at(0, b) + c, left) + sum) / V::set(static_cast<T>(a.P));
    store_channels(sum, a.arriving + b * a.H + c, left);
  });
}

// Chunk sums of g and of g * out.
template <class T>
void rnn_node_sums_part(const RnnNode<T>& a, int64_t item) {
  using V = Vec<T>;
  const Part<T> part(a, item);
  T* sums = a.sums + (part.block * chunks(a.B, 1) + part.chunk) * 2 * kBlockChannels;
  each_register<T>(part.width, [&](int64_t c, auto left) {
    const auto g = [&](int64_t b) { return load_channels(a.g.at(0, part.b + b) + part.c + c, left); };
    const auto normal = [&](int64_t b) { return load_channels(a.normal.at(0, part.b + b) + part.c + c, left); };
    interleaved<T>(part.rows, [&](int64_t b, V s) { return s + g(b); }).store(sums + c);
    interleaved<T>(part.rows, [&](int64_t b, V s) { return V::fma(g(b), normal(b), s); })
        .store(sums + kBlockChannels + c);
  });
}

// The gradient of the sum, through batch norm, to ds [chunk, kBlockChannels].
template <class T>
void rnn_node_through_norm(const RnnNode<T>& a, const Part<T>& part, T* ds) {
  using V = Vec<T>;
  for (int64_t b = 0; b < part.rows; ++b) {
    each_register<T>(part.width, [&](int64_t c, auto left) {
      const int64_t channel = part.c + c;
      const V mean = V::load(a.means + channel), slope = V::load(a.means + padded(a.H) + channel);
      const V g = load_channels(a.g.at(0, part.b + b) + channel, left);
      const V normal = load_channels(a.normal.at(0, part.b + b) + channel, left);
      (((g - mean) - normal * slope) * V::load(a.rstd + channel)).store(ds + b * kBlockChannels + c);
    });
  }
}

// Scratch memory: ds, and the sums of a predecessor's weights [5, kBlockChannels].
template <class T>
void rnn_node_backward_part(const RnnNode<T>& a, int64_t item, T* memory) {
  const Part<T> part(a, item);
  T* sums = memory + kChunkPixels * kBlockChannels;
  const auto add = [&](int64_t i, int64_t c, auto x, auto y) {
    using V = decltype(x);
    T* sum = sums + i * kBlockChannels + c;
    V::fma(x, y, V::load(sum)).store(sum);
  };
  rnn_node_through_norm(a, part, memory);
  for (int64_t j = 0; j < a.P; ++j) {
    const T* w = a.weights + j * kWeightSums;
    __builtin_memset(sums, 0, kWeightSums * kBlockChannels * sizeof(T));
    for (int64_t b = 0; b < part.rows; ++b) {
      each_pair<T>(part.width, [&](int64_t c, auto left, auto v) {
        using V = decltype(v);
        const int64_t channel = part.c + c, row = j * a.B + part.b + b;
        const Candidate<V, T> k(a, j, part.b + b, channel, w, left);
        const V one = V::set(1), ds = V::load(memory + b * kBlockChannels + c), dd = ds * k.c, du = ds - dd;
        V slope = V::fma(V::set(w[0]), one - k.tanh * k.tanh, V::set(w[3]));
        slope = V::fma(V::set(w[2]), k.sigmoid * (one - k.sigmoid), slope);
        slope = slope + V::set(w[1]).where_positive(k.h);
        T *d_gate = a.d_gates + row * 2 * a.H + channel, *d_state = a.d_states + row * a.H + channel;
        const T* base = a.base.data && j >= a.base_from ? a.base.at(j, part.b + b) + channel : nullptr;
        T* next = d_gate + kRowsAhead * 2 * a.H;
        prefetch<true>(next, sizeof(V)), prefetch<true>(next + a.H, sizeof(V));
        prefetch<true>(d_state + kRowsAhead * a.H, sizeof(V));
        if (base) prefetch<false>(base + kRowsAhead * a.base.h, sizeof(V));
        store_channels(((ds * (k.d - k.u)) * k.c) * (one - k.c), d_gate, left);
        store_channels(dd * slope, d_gate + a.H, left);
        store_channels(V::fma(V::set(w[4]), du, base ? load_channels<V>(base, left) : V::zero()), d_state, left);
        add(0, c, dd, k.tanh);
        add(1, c, dd, k.relu);
        add(2, c, dd, k.sigmoid);
        add(3, c, dd, k.h);
        add(4, c, du, k.s);
      });
    }
    for (int64_t i = 0; i < kWeightSums; ++i) {
      T* out = a.weight_sums + ((part.chunk * a.P + j) * kWeightSums + i) * padded(a.H) + part.c;
      __builtin_memcpy(out, sums + i * kBlockChannels, part.width * sizeof(T));
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
