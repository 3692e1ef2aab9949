// pool3x3, one image at a time: maximum and average of the same nine pixels.
#pragma once

#include "../pool3x3.h"
#include "reduce.h"
#include "stored.h"

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
    if (count() == 9) return all(f);
    for (int64_t ty = y0; ty < y1; ++ty) {
      for (int64_t tx = x0; tx < x1; ++tx) f(ty * 3 + tx, ty - 1, tx - 1);
    }
  }
  template <class F>
  static void all(F f) {
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) f(t, t / 3 - 1, t % 3 - 1);
  }
};

// f(MOST, MEAN) by which halves there are, as constants.
template <class T, class F>
void with_halves(const Pool3x3<T>& a, F f) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (a.with[0] && a.with[1]) return f(Yes(), Yes());
  if (a.with[0]) return f(Yes(), No());
  f(No(), Yes());
}

// A row of windows, C' channels from c on; also to `tiles`, where moments are asked for.
template <class T, class X, class Z, bool MOST, bool MEAN, class Left>
void pool3x3_row(const Pool3x3<T>& a, int64_t n, int64_t y, int64_t c, Left left, T* const (&tiles)[2]) {
  using V = Vec<T>;
  const Image<const X> image = stored_as<X>(a.x);
  const int64_t C = padded(a.C), h = image.h, w = image.w, step = a.stride * w, first = (n * a.Ho + y) * a.Wo;
  const X* in = image.at(n, y * a.stride) + c;
  const auto pixel = [&](int64_t x, int64_t count, auto each_tap) {
    V most = V::set(-__builtin_inf()), sum = V::zero();
    each_tap([&](int64_t, int64_t dy, int64_t dx) {
      const V v = load_channels(in + dy * h + dx * w, left);
      if constexpr (MOST) most = V::select(most.beaten_by(v), v, most);
      if constexpr (MEAN) sum = sum + v;
    });
    const auto put = [&](int half, V v) {
      Z* const z = static_cast<Z*>(a.z[half]);
      store_channels(v, z + (first + x) * a.C + c, left);
      if (a.moments) rounded(v, z).store(tiles[half] + x * C + c);
    };
    if constexpr (MOST) put(0, most);
    if constexpr (MEAN) put(1, sum / V::set(static_cast<T>(count)));
    in += step;
  };
  const auto at_the_edge = [&](int64_t x) {
    const Window window(y * a.stride, x * a.stride, a.H, a.W);
    pixel(x, window.count(), [&](auto f) { window.each(f); });
  };
  const bool whole = y > 0 && y * a.stride + 1 < a.H;
  const int64_t end = whole ? (a.W - 1 + a.stride - 1) / a.stride : 1;  // of windows with all taps, from the second on
  at_the_edge(0);
  for (int64_t x = 1; x < end; ++x) pixel(x, 9, [](auto f) { Window::all(f); });
  for (int64_t x = end > 1 ? end : 1; x < a.Wo; ++x) at_the_edge(x);
}

// x is stored as X, both z as Z. Scratch memory: two tiles [chunk, C'].
template <class T, class X, class Z>
void pool3x3_image(const Pool3x3<T>& a, int64_t n, T* memory) {
  const int64_t C = padded(a.C), step = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo), tile = step * a.Wo * C;
  T* const tiles[2] = {memory, memory + tile};
  for (int64_t i = 0; i < 2 * tile; ++i) memory[i] = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y0 = k * step, rows = y0 + step <= a.Ho ? step : a.Ho - y0;
    for (int64_t y = 0; y < rows; ++y) {
      T* const at[2] = {tiles[0] + y * a.Wo * C, tiles[1] + y * a.Wo * C};
      each_register<T>(a.C, [&](int64_t c, auto left) {
        with_halves(a, [&](auto most, auto mean) {
          pool3x3_row<T, X, Z, decltype(most)::value, decltype(mean)::value>(a, n, y0 + y, c, left, at);
        });
      });
    }
    for (int64_t half = 0; half < 2; ++half) {
      if (!a.moments || !a.with[half]) continue;
      chunk_moments<T>(tiles[half], C, rows * a.Wo, C, a.moments + ((half * a.N + n) * count + k) * 2 * C);
    }
  }
}

// The gradients of one z, C' channels from c on: that of the node through batch norm, or z's own.
template <class T>
class PoolGradient {
 public:
  using V = Vec<T>;
  PoolGradient(const Pool3x3<T>& a, int half, int64_t n, int64_t y, int64_t c)
      : g_(a.g[half]), z_(a.saved[half]), normed_(a.coef[half]) {
    if (!a.with[half]) return;
    g_.data = g_.at(n, y) + c;
    if (!normed_) return;
    if (z_.data) z_.data = z_.at(n, y) + c;
    const T* k = a.coef[half] + c;
    const int64_t C = padded(a.C);
    shift_ = V::load(k), mu_ = V::load(k + C), r_ = V::load(k + 2 * C), k_ = V::load(k + 3 * C);
  }
  // Of the window at x; z is that of the forward, made again.
  template <class Left>
  V at(int64_t x, Left left, V z) const {
    const V g = load_channels(g_.data + x * g_.w, left);
    if (!normed_) return g;
    if (z_.data) z = load_channels(z_.data + x * z_.w, left);
    return ((g - shift_) - (z - mu_) * r_) * k_;
  }

 private:
  Image<const T> g_, z_;
  bool normed_;
  V shift_, mu_, r_, k_;
};

// What a window gives to the pixels that it takes.
template <class T, bool MOST, bool MEAN>
struct PoolShares {
  Vec<T> where;  // the tap of the maximum
  Vec<T> maximum, share;

  // To the sums of a pixel of each of its rows of taps, in a column of them. A sum is never -0.
  void add(int column, Vec<T> (&sums)[3]) const {
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) {
      Vec<T> given = MEAN ? share : Vec<T>::zero();
      if constexpr (MOST) given = given.plus_where_equal(where, Vec<T>::set(static_cast<T>(3 * row + column)), maximum);
      sums[row] = sums[row] + given;
    }
  }
};

// A row of windows, C' channels from c on, to the gradients of the three rows of pixels that they take, which lie at
// `rows` from the pixel before the first on. Every pixel gets its windows' shares from left to right.
template <class T, class X, int S, bool MOST, bool MEAN, class Left>
void pool3x3_backward_row(const Pool3x3<T>& a, int64_t n, int64_t y, int64_t c, Left left, T* const (&rows)[3]) {
  using V = Vec<T>;
  using Shares = PoolShares<T, MOST, MEAN>;
  const int64_t C = padded(a.C), Wo = a.Wo;
  const Image<const X> image = stored_as<X>(a.x);
  const X* in = image.at(n, y * S) + c;
  const PoolGradient<T> maximum(a, 0, n, y, c), average(a, 1, n, y, c);
  const auto shares = [&](int64_t x) {
    const Window w(y * S, x * S, a.H, a.W);
    const V count = V::set(static_cast<T>(w.count()));
    V most = V::set(-__builtin_inf()), sum = V::zero(), where = V::set(static_cast<T>(w.y0 * 3 + w.x0));
    w.each([&](int64_t tap, int64_t dy, int64_t dx) {
      const V v = load_channels(in + dy * image.h + (x * S + dx) * image.w, left);
      if constexpr (MOST) {
        const auto better = most.beaten_by(v);
        most = V::select(better, v, most);
        where = V::select(better, V::set(static_cast<T>(tap)), where);
      }
      if constexpr (MEAN) sum = sum + v;
    });
    Shares found{where, V::zero(), V::zero()};
    if constexpr (MOST) found.maximum = maximum.at(x, left, most);
    if constexpr (MEAN) found.share = average.at(x, left, sum / count) / count;
    return found;
  };
  const auto column = [&](int64_t x, auto add) {
    V sums[3];
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) sums[row] = V::load(rows[row] + x * C);
    add(sums);
#pragma GCC unroll 3
    for (int row = 0; row < 3; ++row) sums[row].store(rows[row] + x * C);
  };
  Shares before{V::set(-1), V::zero(), V::zero()}, last = before;  // nothing
  for (int64_t x = 0; x < Wo; ++x) {
    const Shares next = shares(x);
    if constexpr (S == 1) {
      column(x, [&](auto& sums) { before.add(2, sums), last.add(1, sums), next.add(0, sums); });
    } else {
      column(2 * x, [&](auto& sums) { last.add(2, sums), next.add(0, sums); });
      column(2 * x + 1, [&](auto& sums) { next.add(1, sums); });
    }
    before = last, last = next;
  }
  if constexpr (S == 1) column(Wo, [&](auto& sums) { before.add(2, sums), last.add(1, sums); });
  else column(2 * Wo, [&](auto& sums) { last.add(2, sums); });
}

// A row of the image's gradient, from the pixel before its first on, to dx. Every element of base is read just before
// its place in dx is written: they may be one.
template <class T>
void pool3x3_finish_row(const Pool3x3<T>& a, int64_t n, int64_t y, const T* row) {
  using V = Vec<T>;
  const int64_t C = padded(a.C);
  each_register<T>(a.C, [&](int64_t c, auto left) {
    const T* in = row + C + c;
    T* out = a.dx.at(n, y) + c;
    const T* base = a.base.data ? a.base.at(n, y) + c : nullptr;
    const Image<const T>& node = a.g[a.with[0] ? 0 : 1];
    const T* g = a.skip ? node.at(n, y) + c : nullptr;
    for (int64_t x = 0; x < a.W; ++x, in += C, out += a.dx.w) {
      V v = V::load(in);
      if (base || g) {
        V below = base ? load_channels(base + x * a.base.w, left) : V::zero();
        if (g) below = V::fma(V::set(*a.skip), load_channels(g + x * node.w, left), below);
        v = below + v;
      }
      store_channels(v, out, left);
    }
  });
}

// x is stored as X. Scratch memory: four rows of the image's gradient, [W + 2, C'] each, of which rows of windows take three.
template <class T, class X>
void pool3x3_backward_image(const Pool3x3<T>& a, int64_t n, T* memory) {
  const int64_t pitch = (a.W + 2) * padded(a.C), S = a.stride;
  const auto row = [=](int64_t y) { return memory + (y & 3) * pitch; };  // -1 is a row, too
  __builtin_memset(memory, 0, 4 * pitch * sizeof(T));
  const auto windows = [&](auto stride, int64_t y) {
    T* const rows[3] = {row(y * S - 1), row(y * S), row(y * S + 1)};
    each_register<T>(a.C, [&](int64_t c, auto left) {
      T* const at[3] = {rows[0] + c, rows[1] + c, rows[2] + c};
      with_halves(a, [&](auto most, auto mean) {
        constexpr bool MOST = decltype(most)::value, MEAN = decltype(mean)::value;
        pool3x3_backward_row<T, X, decltype(stride)::value, MOST, MEAN>(a, n, y, c, left, at);
      });
    });
  };
  int64_t done = -1;
  for (int64_t y = 0; y < a.Ho; ++y) {
    S == 1 ? windows(Int<1>(), y) : windows(Int<2>(), y);
    for (const int64_t end = y + 1 < a.Ho ? (y + 1) * S - 1 : a.H; done < end; ++done) {
      if (done >= 0) pool3x3_finish_row(a, n, done, row(done));
      __builtin_memset(row(done), 0, pitch * sizeof(T));
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
