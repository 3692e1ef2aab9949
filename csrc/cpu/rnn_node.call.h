// rnn_node on given memory. A call keeps what it packs, and must outlive the sections that its work runs in.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "packing.h"
#include "section.h"

namespace dartsfast {

// Rows [B, C] or [P, B, C] with adjacent channels.
template <class T>
Image<const T> rnn_rows(const Array& a) {
  return {static_cast<const T*>(a.data), a.dim == 3 ? a.stride[0] : 0, a.stride[a.dim == 3 ? 1 : 0], 0};
}

// The argument struct and everything that it points to.
template <class T>
class RnnNodeArguments {
 public:
  explicit RnnNodeArguments(const RnnNodeInputs<T>& in) {
    args_.P = in.states.size[0], args_.B = in.states.size[1], args_.H = in.states.size[2];
    args_.gates = rnn_rows<T>(in.gates), args_.states = rnn_rows<T>(in.states);
    const T* w = in.weights;
    for (int64_t j = 0; j < args_.P; ++j, w += kActivations) {
      weights_.insert(weights_.end(), w, w + kActivations);
      T sum = w[0];
      for (int64_t k = 1; k < kActivations; ++k) sum += w[k];
      weights_.push_back(sum);
    }
    args_.weights = weights_.data();
  }
  RnnNodeArguments(const RnnNodeArguments&) = delete;

 protected:
  int64_t count() const { return chunks(args_.B, 1); }
  int64_t block() const { return count() * 2 * kBlockChannels; }  // elements of a block's chunks
  int64_t parts() const { return count() * blocks(args_); }
  int64_t cost() const { return kChunkPixels * kBlockChannels * args_.P * 40; }  // of a part

  // f(c, place of c in its block) for the channels of block i.
  template <class F>
  void each_channel(int64_t i, F f) const {
    for (int64_t c = 0; c < kBlockChannels && i * kBlockChannels + c < args_.H; ++c) f(i * kBlockChannels + c, c);
  }

  RnnNode<T> args_{};

 private:
  std::vector<T> weights_;
};

// rstd of a variance.
template <class T>
T rnn_rstd(T variance, T eps) {
  return T(1) / std::sqrt(variance + eps);
}

template <class T>
class RnnNodeCall : RnnNodeArguments<T> {
 public:
  RnnNodeCall(const RnnNodeInputs<T>& in, const RnnNodeOutputs<T>& out)
      : RnnNodeArguments<T>(in), outputs_(out), eps_(in.eps), norm_(2 * padded(args_.H), T(0)) {
    args_.out = out.out, args_.mean = out.mean, args_.masked = out.masked, args_.norm = norm_.data();
    if (out.mask.data) args_.mask = rnn_rows<T>(out.mask);
    if (out.stats) moments_ = memory<T>(blocks(args_) * this->block());
    args_.moments = moments_.get();
  }

  Work sums() {
    return {this->parts(), this->cost(), [this](int64_t i, bool first) {
              T* sums = scratch<T>(kRnnNodeScratch);
              if (first) std::memset(sums, 0, kRnnNodeScratch * sizeof(T));
              kernels<T>().rnn_node(args_, i, sums);
            }};
  }

  // The norm, of the batch where it is not given: a block of channels an item.
  Work moments() {
    return {blocks(args_), this->block(), [this](int64_t i, bool) {
              if (outputs_.stats) fill_stats(i);
              const T* norm = outputs_.stats ? outputs_.stats : outputs_.given;
              this->each_channel(i, [&](int64_t c, int64_t) {
                norm_[c] = norm[c], norm_[padded(args_.H) + c] = rnn_rstd(norm[args_.H + c], eps_);
              });
            }};
  }

  Work normalise() {
    return {args_.B, args_.H * 2, [this](int64_t b, bool) { kernels<T>().rnn_node_normalise(args_, b); }};
  }

 private:
  void fill_stats(int64_t i) {
    std::vector<int64_t> rows(this->count(), chunk_rows(1));
    rows.back() = args_.B - (this->count() - 1) * chunk_rows(1);
    T* part = args_.moments + i * this->block();
    kernels<T>().tree_moments(part, rows.data(), this->count(), kBlockChannels);
    this->each_channel(i, [&](int64_t c, int64_t place) {
      outputs_.stats[c] = part[place];
      outputs_.stats[args_.H + c] = part[kBlockChannels + place] / static_cast<T>(args_.B);
    });
  }

  using RnnNodeArguments<T>::args_;
  RnnNodeOutputs<T> outputs_;
  T eps_;
  std::vector<T> norm_;  // [2, H']
  Memory<T> moments_;
};

template <class T>
class RnnNodeBackwardCall : RnnNodeArguments<T> {
 public:
  RnnNodeBackwardCall(const RnnNodeInputs<T>& in, const RnnNodeGradients<T>& out)
      : RnnNodeArguments<T>(in), out_(out), means_(2 * C(), T(0)), rstd_(C(), T(0)) {
    for (int64_t c = 0; c < args_.H; ++c) rstd_[c] = rnn_rstd(out.variance[c], in.eps);
    args_.means = means_.data(), args_.rstd = rstd_.data();
    args_.g = rnn_rows<T>(out.g), args_.normal = rnn_rows<T>(out.out);
    if (out.through.data) {
      arriving_ = memory<T>(args_.B * args_.H);
      args_.arriving = arriving_.get(), args_.through = rnn_rows<T>(out.through);
      if (out.of_mean.data) args_.of_mean = rnn_rows<T>(out.of_mean);
      if (out.mask.data) args_.mask = rnn_rows<T>(out.mask);
      arriving_args_ = args_;
      args_.g = {args_.arriving, 0, args_.H, 0};
    }
    if (out.base.data) args_.base = rnn_rows<T>(out.base);
    // The mean's share in every state but the first is the node's own.
    if (args_.of_mean.data) args_.base = args_.g, args_.base_from = 1;
    args_.d_gates = out.d_gates, args_.d_states = out.d_states;
    if (out.own) {
      sums_ = memory<T>(blocks(args_) * this->block());
      std::memset(sums_.get(), 0, blocks(args_) * this->block() * sizeof(T));
      args_.sums = sums_.get();
    }
    weight_sums_ = memory<T>(this->count() * width());
    args_.weight_sums = weight_sums_.get();
  }

  // What reads the masked copy and the mean adds to g.
  Work arriving() {
    return {out_.through.data ? args_.B : 0, args_.H * 4,
            [this](int64_t b, bool) { kernels<T>().rnn_node_arriving(arriving_args_, b); }};
  }

  Work sums() {
    return {out_.own ? this->parts() : 0, kChunkPixels * kBlockChannels * 4,
            [this](int64_t i, bool) { kernels<T>().rnn_node_sums(args_, i); }};
  }

  // The means [2, H'] of g and of g * out over the batch: a block of channels an item.
  Work means() {
    return {out_.own ? blocks(args_) : 0, this->block(), [this](int64_t i, bool) {
              T* part = args_.sums + i * this->block();
              kernels<T>().tree_sum(part, this->count(), 2 * kBlockChannels, 2 * kBlockChannels);
              this->each_channel(i, [&](int64_t c, int64_t place) {
                means_[c] = part[place] / static_cast<T>(args_.B);
                means_[C() + c] = part[kBlockChannels + place] / static_cast<T>(args_.B);
              });
            }};
  }

  Work gradients() {
    return {this->parts(), 2 * this->cost(),
            [this](int64_t i, bool) { kernels<T>().rnn_node_backward(args_, i, scratch<T>(kRnnNodeScratch)); }};
  }

  // The gradients of the weights: a predecessor an item.
  Work finish() {
    return {args_.P, this->count() * kWeightSums * C(), [this](int64_t j, bool) {
              T* rows = args_.weight_sums + j * kWeightSums * C();
              kernels<T>().tree_sum(rows, this->count(), width(), kWeightSums * C());
              for (int64_t i = 0; i < kWeightSums; ++i) kernels<T>().tree_sum(rows + i * C(), args_.H, 1, 1);
              for (int64_t k = 0; k < kActivations; ++k) {
                const T gradient = rows[k * C()] + rows[kActivations * C()];
                T& d = out_.d_weights[j * kActivations + k];
                d = out_.accumulate ? d + gradient : gradient;
              }
            }};
  }

 private:
  int64_t C() const { return padded(args_.H); }
  int64_t width() const { return args_.P * kWeightSums * C(); }

  using RnnNodeArguments<T>::args_;
  RnnNodeGradients<T> out_;
  RnnNode<T> arriving_args_{};  // with g as it is given
  std::vector<T> means_, rstd_;
  Memory<T> arriving_, sums_, weight_sums_;
};

}  // namespace dartsfast
