// pool3x3, one image at a time: maximum and average of the same nine pixels.
#pragma once

#include "../pool3x3.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

// The taps of the window around (y, x) that lie in the image.
struct Window {
  int64_t y, x, y0, y1, x0, x1;
  Window(int64_t y, int64_t x, int64_t H, int64_t W)
      : y(y), x(x), y0(y ? 0 : 1), y1(y + 1 < H ? 3 : 2), x0(x ? 0 : 1), x1(x + 1 < W ? 3 : 2) {}
  int64_t count() const { return (y1 - y0) * (x1 - x0); }

  // f(tap 0 to 8, dy, dx) for every tap, row by row; unrolled where all nine are there.
  template <class F>
  void each(F f) const {
    if (count() == 9) {
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) f(t, t / 3 - 1, t % 3 - 1);
      return;
    }
    for (int64_t ty = y0; ty < y1; ++ty) {
      for (int64_t tx = x0; tx < x1; ++tx) f(ty * 3 + tx, ty - 1, tx - 1);
    }
  }
};

// Scratch memory: two tiles [chunk, C'].
template <class T>
void pool3x3_image(const Pool3x3<T>& a, int64_t n, T* memory) {
  using V = Vec<T>;
  const int64_t C = padded(a.C), step = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo), tile = step * a.Wo * C;
  for (int64_t i = 0; i < 2 * tile; ++i) memory[i] = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y0 = k * step, rows = y0 + step <= a.Ho ? step : a.Ho - y0;
    for (int64_t p = 0, y = y0, x = 0; p < rows * a.Wo; ++p, x + 1 < a.Wo ? ++x : (++y, x = 0)) {
      const Window w(y * a.stride, x * a.stride, a.H, a.W);
      const int64_t pixel = ((n * a.Ho + y) * a.Wo + x) * a.C;
      each_register<T>(a.C, [&](int64_t c, auto left) {
        const T* in = a.x.at(n, w.y) + w.x * a.x.w + c;
        V most = V::set(-__builtin_inf()), sum = V::zero();
        w.each([&](int64_t, int64_t dy, int64_t dx) {
          const V v = load_channels(in + dy * a.x.h + dx * a.x.w, left);
          most = V::select(most.beaten_by(v), v, most);
          sum = sum + v;
        });
        const V mean = sum / V::set(static_cast<T>(w.count()));
        store_channels(most, a.z[0] + pixel + c, left);
        store_channels(mean, a.z[1] + pixel + c, left);
        most.store(memory + p * C + c);
        mean.store(memory + tile + p * C + c);
      });
    }
    for (int64_t half = 0; half < 2; ++half) {
      chunk_moments<T>(memory + half * tile, C, rows * a.Wo, C, a.moments + ((half * a.N + n) * count + k) * 2 * C);
    }
  }
}

// The gradient of z: that of the node, through batch norm, or z's own.
template <class T, class Left>
Vec<T> pool3x3_gradient(const Pool3x3<T>& a, int half, int64_t n, int64_t y, int64_t x, int64_t c, Left left) {
  using V = Vec<T>;
  const int64_t C = padded(a.C);
  const V g = load_channels(a.g[half].at(n, y) + x * a.g[half].w + c, left);
  if (!a.saved[half].data) return g;
  const T* k = a.coef[half] + c;
  const V z = load_channels(a.saved[half].at(n, y) + x * a.saved[half].w + c, left);
  return ((g - V::load(k)) - (z - V::load(k + C)) * V::load(k + 2 * C)) * V::load(k + 3 * C);
}

// Scratch memory: the gradient of the image, [H + 2, W + 2, C'].
template <class T>
void pool3x3_backward_image(const Pool3x3<T>& a, int64_t n, T* memory) {
  using V = Vec<T>;
  const int64_t C = padded(a.C), pitch = (a.W + 2) * C;
  __builtin_memset(memory, 0, (a.H + 2) * pitch * sizeof(T));
  for (int64_t y = 0; y < a.Ho; ++y) {
    for (int64_t x = 0; x < a.Wo; ++x) {
      const Window w(y * a.stride, x * a.stride, a.H, a.W);
      const T* in = a.x.at(n, w.y) + w.x * a.x.w;
      T* out = memory + (w.y + 1) * pitch + (w.x + 1) * C;
      each_register<T>(a.C, [&](int64_t c, auto left) {
        V most = V::set(-__builtin_inf()), where = V::set(static_cast<T>(w.y0 * 3 + w.x0));
        w.each([&](int64_t tap, int64_t dy, int64_t dx) {
          const V v = load_channels(in + dy * a.x.h + dx * a.x.w + c, left);
          const auto better = most.beaten_by(v);
          most = V::select(better, v, most);
          where = V::select(better, V::set(static_cast<T>(tap)), where);
        });
        const V maximum = pool3x3_gradient(a, 0, n, y, x, c, left);
        const V share = pool3x3_gradient(a, 1, n, y, x, c, left) / V::set(static_cast<T>(w.count()));
        w.each([&](int64_t tap, int64_t dy, int64_t dx) {
          T* at = out + dy * pitch + dx * C + c;
          (V::load(at) + (maximum.where_equal(where, V::set(static_cast<T>(tap))) + share)).store(at);
        });
      });
    }
  }
  for (int64_t y = 0; y < a.H; ++y) {
    for (int64_t x = 0; x < a.W; ++x) {
      T* out = a.dx.at(n, y) + x * a.dx.w;
      // Every element of base is read just before its place in dx is written: they may be one.
      const T* base = a.base.data ? a.base.at(n, y) + x * a.base.w : nullptr;
      const T* in = memory + (y + 1) * pitch + (x + 1) * C;
      each_register<T>(a.C, [&](int64_t c, auto left) {
        const V v = V::load(in + c);
        store_channels(base ? load_channels(base + c, left) + v : v, out + c, left);
      });
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
