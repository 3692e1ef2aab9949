// branch_conv, one image at a time, tile by tile: every branch of an edge from one padded copy of its input,
// made as the tiles reach its rows. Images and tiles in scratch memory are blocked: [C' / lanes, height,
// width, lanes].
#pragma once

#include "../branch_conv.h"
#include "gemm.h"
#include "reduce.h"
#include "taps.h"

namespace dartsfast::DARTSFAST_ISA {

// The places in a thread's scratch memory.
template <class T>
struct Scratch {
  static constexpr int64_t L = Vec<T>::size;
  int64_t Ci, Co, P, Q, Wp, Wq, tile;
  int64_t x_block, d_block, s_block;  // elements from one block of channels to the next
  T *x, *d, *s, *t, *dt, *z;

  Scratch(const BranchConv<T>& a, T* memory) : Ci(padded(a.Ci)), Co(padded(a.Co)), P(border(a)), Q(output_border(a)) {
    Wp = a.W + 2 * P;
    Wq = a.Wo + 2 * Q;
    tile = chunk_rows(a.Wo) * a.Wo * L;
    x_block = (a.H + 2 * P) * Wp * L;
    d_block = (a.Ho + 2 * Q) * Wq * L;
    s_block = a.H * a.W * L;
    x = memory;                 // [H + 2P, W + 2P] relu(norm(x)), zero border
    t = x + x_block * Ci / L;   // [tile] depthwise output
    z = t + tile * Ci / L;      // [tile] dz; or z, [pixels, Co']
    dt = z + tile * Co / L;     // [tile] gradient of the depthwise output
    d = dt + tile * Ci / L;     // [branches, Ho + 2Q, Wo + 2Q] the same of the image, zero border
    s = d + a.branches * d_block * Ci / L;  // [H, W] gradient of relu's output, all branches
  }
  // What must be zero before the first image: borders, and lanes beyond the channels.
  int64_t zeros(bool backward) const { return (backward ? s : dt) - x; }
  T* pixel(int64_t c, int64_t y) const { return x + c / L * x_block + ((y + P) * Wp + P) * L; }
  T* gradient(int64_t branch, int64_t c) const { return d + (branch * Ci + c) / L * d_block; }
};

// How many rows of x the output rows before `end` read, and of how many they are all that read them.
template <class T>
int64_t rows_read(const BranchConv<T>& a, int64_t P, int64_t end) {
  const int64_t rows = (end - 1) * a.stride + P + 1;
  return end == a.Ho || rows > a.H ? a.H : rows;
}
template <class T>
int64_t rows_complete(const BranchConv<T>& a, int64_t P, int64_t end) {
  const int64_t rows = end * a.stride - P;
  return end == a.Ho ? a.H : rows > 0 ? rows : 0;
}

// to[u] = f(from[u]) over the pixels of a row; `left` channels of `from`, `step` elements a pixel.
template <class T, class Left, class F>
void map_row(int64_t pixels, const T* from, int64_t step, Left left, T* to, F f) {
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, from += step, to += Vec<T>::size) f(load_channels(from, left)).store(to);
}

// Copy rows of x into the padded image through norm and relu.
template <class T>
void load_rows(const BranchConv<T>& a, int64_t n, const Scratch<T>& m, int64_t from, int64_t to) {
  using V = Vec<T>;
  const int64_t W = a.W, step = a.x.w;
  for (int64_t y = from; y < to; ++y) {
    each_register<T>(a.Ci, [&](int64_t c, auto left) {
      const T* row = a.x.at(n, y) + c;
      T* out = m.pixel(c, y);
      if (a.norm) {
        const V mean = V::load(a.norm + c), rstd = V::load(a.norm + m.Ci + c);
        if (a.relu) map_row(W, row, step, left, out, [=](V v) { return ((v - mean) * rstd).relu(); });
        else map_row(W, row, step, left, out, [=](V v) { return (v - mean) * rstd; });
      } else if (a.relu) {
        map_row(W, row, step, left, out, [](V v) { return v.relu(); });
      } else {
        map_row(W, row, step, left, out, [](V v) { return v; });
      }
    });
  }
}

template <class T>
void depthwise_row(const TapsRow<T>& row, int64_t count, int64_t stride) {
  stride == 1 ? taps_row<T, 1>(row, count) : taps_row<T, 2>(row, count);
}

// The depthwise output of `rows` output rows from y0 on, to tile t.
template <class T>
void depthwise_tile(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, int64_t y0, int64_t rows) {
  using V = Vec<T>;
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    for (int64_t y = 0; y < rows; ++y) {
      T* out = m.t + c / V::size * m.tile + y * a.Wo * V::size;
      if (b.taps) {
        const T* in = m.x + c / V::size * m.x_block + (y0 + y) * a.stride * m.Wp * V::size;
        depthwise_row<T>({b.forward, m.Wp, in, b.taps + c, m.Ci, out, V::size, false}, a.Wo, a.stride);
        continue;
      }
      const T* in = m.pixel(c, (y0 + y) * a.stride);
      for (int64_t u = 0; u < a.Wo; ++u) V::load(in + u * a.stride * V::size).store(out + u * V::size);
    }
  }
}

template <class T>
void branch_conv_image(const BranchConv<T>& a, int64_t n, T* memory, bool first) {
  using V = Vec<T>;
  const Scratch<T> m(a, memory);
  if (first) __builtin_memset(memory, 0, m.zeros(false) * sizeof(T));
  const int64_t step = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo);
  int64_t loaded = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y = k * step, rows = y + step <= a.Ho ? step : a.Ho - y, pixels = rows * a.Wo;
    const int64_t needed = rows_read(a, m.P, y + rows);
    load_rows(a, n, m, loaded, needed);
    loaded = needed;
    for (int64_t i = 0; i < a.branches; ++i) {
      const Branch<T>& b = a.branch[i];
      depthwise_tile(a, b, m, y, rows);
      T* out = b.z + (n * a.Ho + y) * a.Wo * a.Co;
      T* z = a.Co == m.Co ? out : m.z;
      gemm<T, false>(pixels, registers<T>(a.Co), a.Ci, {m.t, m.tile}, {b.pointwise, m.Co, V::size}, {z, m.Co, V::size},
                     false);
      chunk_moments<T>(z, m.Co, pixels, m.Co, b.moments + (n * count + k) * 2 * m.Co);
      if (z == out) continue;
      for (int64_t p = 0; p < pixels; ++p) __builtin_memcpy(out + p * a.Co, z + p * m.Co, a.Co * sizeof(T));
    }
  }
}

// A row of dz = k * ((g - m) - (z - mu) * r). coef is padded with zeros, so lanes beyond Co give zero.
template <class T, class Left>
void gradient_row(int64_t pixels, Image<const T> g, Image<const T> z, const T* coef, int64_t ld, Left left, T* out) {
  using V = Vec<T>;
  const V shift = V::load(coef), mu = V::load(coef + ld), r = V::load(coef + 2 * ld), k = V::load(coef + 3 * ld);
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, g.data += g.w, z.data += z.w, out += V::size) {
    const V gv = load_channels(g.data, left), zv = load_channels(z.data, left);
    (((gv - shift) - (zv - mu) * r) * k).store(out);
  }
}

// dz of `rows` output rows from y0 on, formed from g and z, to tile z.
template <class T>
void gradient_tile(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, int64_t n, int64_t y0,
                   int64_t rows) {
  using V = Vec<T>;
  const int64_t W = a.Wo;
  each_register<T>(a.Co, [&](int64_t c, auto left) {
    T* out = m.z + c / V::size * m.tile;
    for (int64_t y = 0; y < rows; ++y, out += W * V::size) {
      Image<const T> g = b.g, z = b.saved;
      g.data = g.at(n, y0 + y) + c;
      if (!z.data) {
        map_row(W, g.data, g.w, left, out, [](V v) { return v; });
        continue;
      }
      z.data = z.at(n, y0 + y) + c;
      gradient_row(W, g, z, b.coef + c, m.Co, left, out);
    }
  });
}

// Everything of a branch and `rows` output rows from y0 on but the adjoint depthwise: dz, its way through the
// pointwise, weight gradients.
template <class T>
void branch_gradient(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t n, int64_t y0, int64_t rows) {
  using V = Vec<T>;
  const Branch<T>& b = a.branch[i];
  const int64_t row = a.Wo * V::size, pixels = rows * a.Wo;
  T* taps_sum = b.taps_grad ? b.taps_grad + n * b.kernel * b.kernel * m.Ci : nullptr;
  T* pointwise_sum = b.pointwise_grad ? b.pointwise_grad + n * a.Ci * m.Co : nullptr;
  if (y0 == 0 && taps_sum) __builtin_memset(taps_sum, 0, b.kernel * b.kernel * m.Ci * sizeof(T));
  if (y0 == 0 && pointwise_sum) __builtin_memset(pointwise_sum, 0, a.Ci * m.Co * sizeof(T));
  gradient_tile(a, b, m, n, y0, rows);
  if (a.dx || taps_sum) {
    gemm<T, false>(pixels, registers<T>(a.Ci), a.Co, {m.z, m.tile}, {b.transposed, m.Ci, V::size},
                   {m.dt, V::size, m.tile}, false);
  }
  if (pointwise_sum) {
    depthwise_tile(a, b, m, y0, rows);
    gemm<T, true>(a.Ci, registers<T>(a.Co), pixels, {m.t, m.tile}, {m.z, V::size, m.tile},
                  {pointwise_sum, m.Co, V::size}, true);
  }
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    const T* dt = m.dt + c / V::size * m.tile;
    if (taps_sum) {
      const T* x = m.x + c / V::size * m.x_block + y0 * a.stride * m.Wp * V::size;
      const auto gradient = a.stride == 1 ? taps_grad<T, 1> : taps_grad<T, 2>;
      gradient(*b.forward, m.Wp, rows, a.Wo, x, dt, taps_sum + c, m.Ci);
    }
    T* d = m.gradient(i, c) + ((y0 + m.Q) * m.Wq + m.Q) * V::size;
    for (int64_t r = 0; a.dx && r < rows; ++r) {
      __builtin_memcpy(d + r * m.Wq * V::size, dt + r * row, row * sizeof(T));
    }
  }
}

// Rows of the gradient of relu's output, to s: the sum over all branches.
template <class T>
void adjoint_depthwise(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t from, int64_t to) {
  using V = Vec<T>;
  const Branch<T>& b = a.branch[i];
  for (int64_t y = from; y < to; ++y) {
    for (int64_t px = 0; px < a.stride; ++px) {
      const Taps& taps = b.adjoint[y % a.stride * a.stride + px];
      const int64_t count = (a.W - px + a.stride - 1) / a.stride;
      for (int64_t c = 0; c < a.Ci; c += V::size) {
        const T* d = m.gradient(i, c) + y / a.stride * m.Wq * V::size;
        T* s = m.s + c / V::size * m.s_block + (y * a.W + px) * V::size;
        taps_row<T, 1>({&taps, m.Wq, d, b.taps + c, m.Ci, s, a.stride * V::size, i > 0}, count);
      }
    }
  }
}

// The same without depthwise: the gradient of the pixels that the stride kept.
template <class T>
void adjoint_stride(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t from, int64_t to) {
  using V = Vec<T>;
  for (int64_t y = from; y < to; ++y) {
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      const T* in = m.gradient(i, c) + ((y / a.stride + m.Q) * m.Wq + m.Q) * V::size;
      T* out = m.s + c / V::size * m.s_block + y * a.W * V::size;
      if (i == 0) __builtin_memset(out, 0, a.W * V::size * sizeof(T));
      if (y % a.stride) continue;
      for (int64_t x = 0; x < a.Wo; ++x, in += V::size, out += a.stride * V::size) {
        (V::load(out) + V::load(in)).store(out);
      }
    }
  }
}

// A row of s through relu and onto base, to dx; s keeps the gradient of norm(x).
template <class T, bool RELU, bool BASE, class Left>
void finish_row(int64_t pixels, T* s, const T* x, Image<const T> base, Left left, T* dx, int64_t C) {
  using V = Vec<T>;
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, s += V::size, x += V::size, dx += C) {
    V v = V::load(s);
    if constexpr (RELU) {
      v = v.where_positive(V::load(x));
      v.store(s);
    }
    if constexpr (BASE) {
      v = load_channels(base.data, left) + v;
      base.data += base.w;
    }
    store_channels(v, dx, left);
  }
}

template <class T>
void finish_rows(const BranchConv<T>& a, const Scratch<T>& m, int64_t n, int64_t from, int64_t to) {
  using V = Vec<T>;
  for (int64_t y = from; y < to; ++y) {
    each_register<T>(a.Ci, [&](int64_t c, auto left) {
      Image<const T> base = a.base;
      if (base.data) base.data = base.at(n, y) + c;
      const auto row = a.relu ? (base.data ? finish_row<T, true, true, decltype(left)> : finish_row<T, true, false, decltype(left)>)
                              : (base.data ? finish_row<T, false, true, decltype(left)> : finish_row<T, false, false, decltype(left)>);
      row(a.W, m.s + c / V::size * m.s_block + y * a.W * V::size, m.pixel(c, y), base, left,
          a.dx + (n * a.H + y) * a.W * a.Ci + c, a.Ci);
    });
  }
}

// The channel sums, of the chunks whose last rows are in [from, to), of the gradient of norm(x) and of its
// product with norm(x).
template <class T>
void norm_gradient(const BranchConv<T>& a, const Scratch<T>& m, int64_t n, int64_t from, int64_t to) {
  using V = Vec<T>;
  const int64_t step = chunk_rows(a.W), count = chunks(a.H, a.W);
  for (int64_t k = from / step; k < (to == a.H ? count : to / step); ++k) {
    const int64_t y = k * step, pixels = (y + step <= a.H ? step : a.H - y) * a.W;
    T* part = a.norm_sums + (n * count + k) * 2 * m.Ci;
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      const T* s = m.s + c / V::size * m.s_block + y * a.W * V::size;
      interleaved<T>(pixels, [=](int64_t p, V v) { return v + V::load(s + p * V::size); }).store(part + c);
      // Where relu cut, the gradient is zero: relu's output serves for norm(x).
      const T* x = m.pixel(c, y);
      int64_t u = 0;
      const auto product = [&](int64_t p, V v) {
        v = V::fma(V::load(s + p * V::size), V::load(x), v);
        x += V::size;
        if (++u == a.W) {
          u = 0;
          x += 2 * m.P * V::size;
        }
        return v;
      };
      interleaved<T>(pixels, product).store(part + m.Ci + c);
    }
  }
}

template <class T>
void branch_conv_backward_image(const BranchConv<T>& a, int64_t n, T* memory, bool first) {
  const Scratch<T> m(a, memory);
  if (first) __builtin_memset(memory, 0, m.zeros(a.dx) * sizeof(T));
  const int64_t step = chunk_rows(a.Wo);
  int64_t loaded = 0, done = 0;
  for (int64_t y = 0; y < a.Ho; y += step) {
    const int64_t rows = y + step <= a.Ho ? step : a.Ho - y, needed = rows_read(a, m.P, y + rows);
    load_rows(a, n, m, loaded, needed);
    loaded = needed;
    for (int64_t i = 0; i < a.branches; ++i) branch_gradient(a, i, m, n, y, rows);
    if (!a.dx) continue;
    const int64_t complete = rows_complete(a, m.P, y + rows);
    for (int64_t i = 0; i < a.branches; ++i) {
      const auto adjoint = a.branch[i].taps ? adjoint_depthwise<T> : adjoint_stride<T>;
      adjoint(a, i, m, done, complete);
    }
    finish_rows(a, m, n, done, complete);
    if (a.norm) norm_gradient(a, m, n, done, complete);
    done = complete;
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
