// pool3x3, one image at a time: maximum and average of the same nine pixels.
#pragma once

#include "../pool3x3.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

// The taps of the window around (y, x) that lie in the image.
struct Window {
  int64_t y, x, y0, y1, x0, x1;
  Window(int64_t y, int64_t x, int64_t H, int64_t W)
      : y(y), x(x), y0(y ? y - 1 : 0), y1(y + 2 < H ? y + 2 : H), x0(x ? x - 1 : 0), x1(x + 2 < W ? x + 2 : W) {}
  // The number of the tap at (yy, xx), 0 to 8.
  template <class T>
  T tap(int64_t yy, int64_t xx) const {
    return static_cast<T>((yy - y + 1) * 3 + xx - x + 1);
  }
  int64_t count() const { return (y1 - y0) * (x1 - x0); }
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
      T* out = a.z + ((n * a.Ho + y) * a.Wo + x) * a.C;
      for (int64_t c = 0; c < a.C; c += V::size) {
        V most = V::set(-__builtin_inf()), sum = V::zero();
        for (int64_t yy = w.y0; yy < w.y1; ++yy) {
          for (int64_t xx = w.x0; xx < w.x1; ++xx) {
            const V v = load_channels(a.x.at(n, yy) + xx * a.x.w + c, a.C - c);
            most = V::select(most.beaten_by(v), v, most);
            sum = sum + v;
          }
        }
        const V mean = sum / V::set(static_cast<T>(w.count()));
        store_channels(most, out + c, a.C - c);
        store_channels(mean, out + a.N * a.Ho * a.Wo * a.C + c, a.C - c);
        most.store(memory + p * C + c);
        mean.store(memory + tile + p * C + c);
      }
    }
    for (int64_t half = 0; half < 2; ++half) {
      chunk_moments<T>(memory + half * tile, C, rows * a.Wo, C, a.moments + ((half * a.N + n) * count + k) * 2 * C);
    }
  }
}

// Scratch memory: the gradient of the image, [H + 2, W + 2, C'].
template <class T>
void pool3x3_backward_image(const Pool3x3<T>& a, int64_t n, T* memory) {
  using V = Vec<T>;
  const int64_t C = padded(a.C), pitch = (a.W + 2) * C;
  for (int64_t i = 0; i < (a.H + 2) * pitch; ++i) memory[i] = 0;
  for (int64_t y = 0; y < a.Ho; ++y) {
    for (int64_t x = 0; x < a.Wo; ++x) {
      const Window w(y * a.stride, x * a.stride, a.H, a.W);
      for (int64_t c = 0; c < a.C; c += V::size) {
        const int64_t left = a.C - c;
        V most = V::set(-__builtin_inf()), where = V::set(w.template tap<T>(w.y0, w.x0));
        for (int64_t yy = w.y0; yy < w.y1; ++yy) {
          for (int64_t xx = w.x0; xx < w.x1; ++xx) {
            const V v = load_channels(a.x.at(n, yy) + xx * a.x.w + c, left);
            const V better = most.beaten_by(v);
            most = V::select(better, v, most);
            where = V::select(better, V::set(w.template tap<T>(yy, xx)), where);
          }
        }
        V d[2];
        for (int half = 0; half < 2; ++half) {
          d[half] = load_channels(a.g[half].at(n, y) + x * a.g[half].w + c, left);
          if (!a.saved[half].data) continue;
          const T* k = a.coef + half * 4 * C + c;
          const V z = load_channels(a.saved[half].at(n, y) + x * a.saved[half].w + c, left);
          d[half] = ((d[half] - V::load(k)) - (z - V::load(k + C)) * V::load(k + 2 * C)) * V::load(k + 3 * C);
        }
        d[1] = d[1] / V::set(static_cast<T>(w.count()));
        for (int64_t yy = w.y0; yy < w.y1; ++yy) {
          for (int64_t xx = w.x0; xx < w.x1; ++xx) {
            T* out = memory + (yy + 1) * pitch + (xx + 1) * C + c;
            const V most_here = d[0].where_equal(where, V::set(w.template tap<T>(yy, xx)));
            (V::load(out) + (most_here + d[1])).store(out);
          }
        }
      }
    }
  }
  for (int64_t y = 0; y < a.H; ++y) {
    for (int64_t x = 0; x < a.W; ++x) {
      T* out = a.dx + ((n * a.H + y) * a.W + x) * a.C;
      const T* base = a.base.data ? a.base.at(n, y) + x * a.base.w : nullptr;
      const T* in = memory + (y + 1) * pitch + (x + 1) * C;
      for (int64_t c = 0; c < a.C; c += V::size) {
        const int64_t left = a.C - c;
        const V v = V::load(in + c);
        store_channels(base ? load_channels(base + c, left) + v : v, out + c, left);
      }
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
