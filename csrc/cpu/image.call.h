// Images copied and added on given memory.
#pragma once

#include <cstring>

#include "kernels.h"
#include "section.h"

namespace dartsfast {

// out = a, or a + b, images [N, H, W, C], with adjacent channels where they are added or stored in 16 bits; out may be
// the memory of either.
template <class T>
class ImageCall {
 public:
  ImageCall(const Array& a, const Array& b, const Array& out)
      : a_(a), b_(b), out_(out), adjacent_(adjacent(a) && adjacent(out)), whole_(dense(a) && dense(b) && dense(out)) {}

  Work images() {
    return {out_.size[0], out_.size[1] * out_.size[2] * out_.size[3], [this](int64_t n, bool) { run(n); }};
  }

 private:
  bool dense(const Array& x) const {
    const int64_t W = out_.size[2], C = out_.size[3];
    return !x.data || (adjacent_ && x.stride[2] == C && x.stride[1] == W * C);
  }

  static bool adjacent(const Array& x) { return x.size[3] == 1 || x.stride[3] == 1; }

  // Image n, pixel by pixel, or at once where all are dense.
  void run(int64_t n) const {
    const int64_t H = whole_ ? 1 : out_.size[1], W = whole_ ? 1 : out_.size[2], C = out_.size[3];
    const int64_t count = whole_ ? out_.size[1] * out_.size[2] * C : C;
    const auto element = [=](const Array& x, int64_t y, int64_t w) {
      return n * x.stride[0] + y * x.stride[1] + w * x.stride[2];
    };
    const auto at = [=](const Array& x, int64_t y, int64_t w) {
      return x.data ? static_cast<T*>(x.data) + element(x, y, w) : nullptr;
    };
    for (int64_t y = 0; y < H; ++y) {
      for (int64_t w = 0; w < W; ++w) {
        const T *from = at(a_, y, w), *other = at(b_, y, w);
        if (out_.storage != Storage::own) {
          kernels<T>().of(out_.storage).store(from, count, static_cast<uint16_t*>(out_.data) + element(out_, y, w));
          continue;
        }
        T* to = at(out_, y, w);
        if (!adjacent_) {
          const int64_t step = a_.stride[3], out_step = out_.stride[3];
          for (int64_t c = 0; c < C; ++c) to[c * out_step] = from[c * step];
          continue;
        }
        if (!other) std::memmove(to, from, count * sizeof(T));
        for (int64_t c = 0; other && c < count; ++c) to[c] = from[c] + other[c];
      }
    }
  }

  Array a_, b_, out_;
  bool adjacent_, whole_;
};

// `count` zeros.
template <class T>
class ZeroCall {
 public:
  ZeroCall(void* out, int64_t count) : out_(out), count_(count) {}

  Work zeros() {
    return {1, count_, [this](int64_t, bool) { std::memset(out_, 0, count_ * sizeof(T)); }};
  }

 private:
  void* out_;
  int64_t count_;
};

}  // namespace dartsfast
