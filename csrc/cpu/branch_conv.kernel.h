// branch_conv, one image at a time, tile by tile: every branch of an edge from one padded copy of its input,
// made as the tiles reach its rows. Images and tiles in scratch memory are blocked, [C' / lanes, height, width, lanes].
#pragma once

#include "branch_conv_ahead.h"
#include "gemm_block.h"
#include "reduce.h"
#include "taps.h"

namespace dartsfast::DARTSFAST_ISA {

// Blocks of an image with a border of zeros.
template <class T>
struct Padded {
  static constexpr int64_t L = Vec<T>::size;
  T* data;
  int64_t H, W, border, width, block;  // width: pixels of a padded row; block: elements

  Padded(T* data, int64_t H, int64_t W, int64_t border)
      : data(data), H(H), W(W), border(border), width(W + 2 * border), block((H + 2 * border) * width * L) {}
  T* corner(int64_t c) const { return data + c / L * block; }
  T* pixel(int64_t c, int64_t y) const { return corner(c) + ((y + border) * width + border) * L; }
  void zero_border(int64_t channels) const {
    for (int64_t c = 0; c < channels; c += L) {
      const int64_t edge = (border * width + border) * L * sizeof(T);
      __builtin_memset(corner(c), 0, edge);
      // What is right of a row and left of the next.
      for (int64_t y = 0; y + 1 < H; ++y) __builtin_memset(pixel(c, y) + W * L, 0, 2 * border * L * sizeof(T));
      __builtin_memset(pixel(c, H - 1) + W * L, 0, edge);
    }
  }
};

// The places in a thread's scratch memory.
template <class T>
struct Scratch {
  int64_t Ci, Co;
  Padded<T> x;  // relu(norm(x))
  Padded<T> d;  // gradients of the depthwise outputs, branch after branch
  int64_t tile;  // elements of a block of a tile
  T *t, *z, *s;
  Ahead& ahead;

  Scratch(const BranchConv<T>& a, T* memory, Ahead& ahead)
      : Ci(padded(a.Ci)),
        Co(padded(a.Co)),
        x(memory, a.H, a.W, border(a)),
        d(x.corner(Ci), a.Ho, a.Wo, output_border(a)),
        ahead(ahead) {
    const int64_t pixels = chunk_rows(a.Wo) * a.Wo;
    tile = pixels * Vec<T>::size;
    t = d.corner(a.branches * Ci);  // [Ci' / lanes, pixels, lanes] depthwise output
    z = t + pixels * Ci;            // [Co' / lanes, pixels, lanes] dz; forward [pixels, Co'] z
    s = z + pixels * Co;            // [Ci' / lanes, H, W, lanes] gradient of relu's output, all branches
  }
  T* sum(int64_t c, int64_t y) const { return s + (c / Vec<T>::size * x.H + y) * x.W * Vec<T>::size; }
};

// to[u] = f(from[u]) over the pixels of a row, a register of channels, `left` of them in `from`.
template <class T, class X, class Left, class F>
void map_row(int64_t pixels, const X* from, int64_t from_step, Left left, T* to, int64_t to_step, F f) {
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, from += from_step, to += to_step) f(load_channels(from, left)).store(to);
}

// Copy rows of x into the padded image through norm and relu.
template <class T, class X>
void load_rows(const BranchConv<T>& a, const Image<const X>& image, int64_t n, const Scratch<T>& m, int64_t from,
               int64_t to) {
  using V = Vec<T>;
  const int64_t W = a.W, step = image.w;
  for (int64_t y = from; y < to; ++y) {
    each_register<T>(a.Ci, [&](int64_t c, auto left) {
      const X* row = image.at(n, y) + c;
      T* out = m.x.pixel(c, y);
      if (a.norm) {
        const V mean = V::load(a.norm + c), rstd = V::load(a.norm + m.Ci + c);
        if (a.relu) map_row<T>(W, row, step, left, out, V::size, [=](V v) { return ((v - mean) * rstd).relu(); });
        else map_row<T>(W, row, step, left, out, V::size, [=](V v) { return (v - mean) * rstd; });
      } else if (a.relu) {
        map_row<T>(W, row, step, left, out, V::size, [](V v) { return v.relu(); });
      } else {
        map_row<T>(W, row, step, left, out, V::size, [](V v) { return v; });
      }
    });
  }
}

// The depthwise output of `rows` output rows from y0 on, to tile t.
template <class T>
void depthwise_tile(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, int64_t y0, int64_t rows) {
  using V = Vec<T>;
  const int64_t pitch = a.stride * m.x.width * V::size;
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    if (b.taps) {
      const auto tile = a.stride == 1 ? taps_tile<T, 1> : taps_tile<T, 2>;
      tile({b.forward, m.x.width, m.x.corner(c) + y0 * pitch, pitch, b.taps + c, m.Ci, m.t + c / V::size * m.tile,
            a.Wo * V::size, V::size, false, m.ahead},
           rows, a.Wo);
      continue;
    }
    T* out = m.t + c / V::size * m.tile;
    for (int64_t y = 0; y < rows; ++y) {
      const T* in = m.x.pixel(c, (y0 + y) * a.stride);
      for (int64_t x = 0; x < a.Wo; ++x, out += V::size) V::load(in + x * a.stride * V::size).store(out);
    }
  }
}

// x is stored as X, every z as Z.
template <class T, class X, class Z>
void branch_conv_image(const BranchConv<T>& a, int64_t n, T* memory, bool first) {
  using V = Vec<T>;
  Ahead ahead;
  const Scratch<T> m(a, memory, ahead);
  const int64_t step = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo);
  if (first) m.x.zero_border(a.Ci);
  if (first) __builtin_memset(m.z, 0, step * a.Wo * m.Co * sizeof(T));
  int64_t loaded = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y = k * step, rows = y + step <= a.Ho ? step : a.Ho - y, pixels = rows * a.Wo;
    const int64_t needed = rows_read(a, m.x.border, y + rows);
    load_rows(a, stored_as<X>(a.x), n, m, loaded, needed);
    loaded = needed;
    ask_forward<T, X, Z>(a, NextTile(a, n, y + step), ahead);
    for (int64_t i = 0; i < a.branches; ++i) {
      const Branch<T>& b = a.branch[i];
      Z* out = static_cast<Z*>(b.z) + (n * a.Ho + y) * a.Wo * b.z_pitch;
      depthwise_tile(a, b, m, y, rows);
      const bool at_once = std::is_same_v<Z, T> && a.Co == m.Co && b.z_pitch == a.Co;
      T* z = at_once ? static_cast<T*>(static_cast<void*>(out)) : m.z;
      gemm<T>({pixels}, registers<T>(a.Co), a.Ci, {m.t, m.tile}, {b.pointwise, m.Co, V::size}, {z, m.Co, V::size},
              ahead);
      if constexpr (!std::is_same_v<Z, T>) store_tile(z, pixels, a.Co, out, b.z_pitch);
      chunk_moments<T>(z, m.Co, pixels, m.Co, b.moments + (n * count + k) * 2 * m.Co);
      if constexpr (std::is_same_v<Z, T>) {
        if (at_once) continue;
        for (int64_t p = 0; p < pixels; ++p) __builtin_memcpy(out + p * b.z_pitch, z + p * m.Co, a.Co * sizeof(T));
      }
    }
  }
}

// z of some pixels, a tile [pixels, C'], to where it is stored, `pitch` from pixel to pixel; the tile keeps what is left
// of it there.
template <class T, class Z>
void store_tile(T* tile, int64_t pixels, int64_t C, Z* out, int64_t pitch) {
  for (int64_t p = 0; p < pixels; ++p, tile += padded(C), out += pitch) {
    each_register<T>(C, [&](int64_t c, auto left) {
      const Vec<T> v = Vec<T>::load(tile + c);
      store_channels(v, out + c, left);
      rounded(v, out).store(tile + c);
    });
  }
}

// A row of dz = k * ((g - m) - (z - mu) * r). coef is padded with zeros, so lanes beyond Co give zero.
template <class T, class Z, class Left>
void gradient_row(int64_t pixels, Image<const T> g, Image<const Z> z, const T* coef, int64_t ld, Left left, T* out) {
  using V = Vec<T>;
  const V shift = V::load(coef), mu = V::load(coef + ld), r = V::load(coef + 2 * ld), k = V::load(coef + 3 * ld);
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, g.data += g.w, z.data += z.w, out += V::size) {
    const V gv = load_channels(g.data, left), zv = load_channels(z.data, left);
    (((gv - shift) - (zv - mu) * r) * k).store(out);
  }
}

// dz of `rows` output rows from y0 on, formed from g and z, to tile z.
template <class T, class Z>
void gradient_tile(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, int64_t n, int64_t y0,
                   int64_t rows) {
  using V = Vec<T>;
  each_register<T>(a.Co, [&](int64_t c, auto left) {
    T* out = m.z + c / V::size * m.tile;
    for (int64_t y = 0; y < rows; ++y, out += a.Wo * V::size) {
      Image<const T> g = b.g;
      Image<const Z> z = stored_as<Z>(b.saved);
      g.data = g.at(n, y0 + y) + c;
      if (!z.data) {
        map_row<T>(a.Wo, g.data, g.w, left, out, V::size, [](V v) { return v; });
        continue;
      }
      z.data = z.at(n, y0 + y) + c;
      gradient_row(a.Wo, g, z, b.coef + c, m.Co, left, out);
    }
  });
}

// Everything of a branch and `rows` output rows from y0 on but the adjoint depthwise: dz, its way through the
// pointwise, weight gradients.
template <class T, class Z>
void branch_gradient(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t n, int64_t y0, int64_t rows) {
  using V = Vec<T>;
  const Branch<T>& b = a.branch[i];
  T* taps_sum = b.taps_grad ? b.taps_grad + n * b.kernel * b.kernel * m.Ci : nullptr;
  T* pointwise_sum = b.pointwise_grad ? b.pointwise_grad + n * a.Ci * m.Co : nullptr;
  if (y0 == 0 && taps_sum) __builtin_memset(taps_sum, 0, b.kernel * b.kernel * m.Ci * sizeof(T));
  if (y0 == 0 && pointwise_sum) __builtin_memset(pointwise_sum, 0, a.Ci * m.Co * sizeof(T));
  gradient_tile<T, Z>(a, b, m, n, y0, rows);
  if (a.dx.data || taps_sum) {
    gemm<T>({a.Wo, rows, m.d.width * V::size}, registers<T>(a.Ci), a.Co, {m.z, m.tile},
            {b.transposed, m.Ci, V::size}, {m.d.pixel(i * m.Ci, y0), V::size, m.d.block}, m.ahead);
  }
  if (pointwise_sum) {
    depthwise_tile(a, b, m, y0, rows);
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      gemm<T, true>({a.Ci - c < V::size ? a.Ci - c : V::size}, registers<T>(a.Co), rows * a.Wo,
                    {m.t + c / V::size * m.tile, 0}, {m.z, V::size, m.tile}, {pointwise_sum + c * m.Co, m.Co, V::size},
                    m.ahead);
    }
  }
  const auto gradient = a.stride == 1 ? taps_grad<T, 1> : taps_grad<T, 2>;
  for (int64_t c = 0; taps_sum && c < a.Ci; c += V::size) {
    const T* x = m.x.corner(c) + y0 * a.stride * m.x.width * V::size;
    gradient({b.forward, m.x.width, x, m.d.pixel(i * m.Ci + c, y0), m.d.width * V::size, rows, a.Wo, taps_sum + c, m.Ci});
  }
}

// Rows of the gradient of relu's output, to s: the sum over all branches.
template <class T>
void adjoint_depthwise(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t from, int64_t to) {
  using V = Vec<T>;
  const Branch<T>& b = a.branch[i];
  const int64_t S = a.stride, pitch = m.d.width * V::size;
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    for (int64_t phase = 0; phase < S * S; ++phase) {
      const int64_t x = phase % S, y = from + (phase / S - from % S + S) % S;
      if (y >= to || x >= a.W) continue;
      taps_tile<T, 1>({b.adjoint + phase, m.d.width, m.d.corner(i * m.Ci + c) + y / S * pitch, pitch, b.taps + c, m.Ci,
                       m.sum(c, y) + x * V::size, S * a.W * V::size, S * V::size, i > 0, m.ahead},
                      (to - y + S - 1) / S, (a.W - x + S - 1) / S);
    }
  }
}

// The same without depthwise: the gradient of the pixels that the stride kept.
template <class T>
void adjoint_stride(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t from, int64_t to) {
  using V = Vec<T>;
  for (int64_t y = from; y < to; ++y) {
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      T* out = m.sum(c, y);
      if (i == 0) __builtin_memset(out, 0, a.W * V::size * sizeof(T));
      if (y % a.stride) continue;
      const T* in = m.d.pixel(i * m.Ci + c, y / a.stride);
      for (int64_t x = 0; x < a.Wo; ++x, in += V::size, out += a.stride * V::size) {
        (V::load(out) + V::load(in)).store(out);
      }
    }
  }
}

// A row of s through relu and onto base and what there is, to dx, which may be the memory of either. With a norm, s
// keeps the gradient of norm(x).
template <class T, bool RELU, bool NORM, bool BASE, bool ONTO, class X, class Left>
void finish_row(int64_t pixels, T* s, int64_t s_step, const X* x, int64_t x_step, Image<const T> base,
                Image<const T> onto, Left left, Image<T> dx) {
  using V = Vec<T>;
#pragma GCC unroll 4
  for (int64_t u = 0; u < pixels; ++u, s += s_step, x += x_step, dx.data += dx.w) {
    V v = V::load(s);
    if constexpr (RELU && NORM) v = v.where_positive(V::load(x));
    else if constexpr (RELU) v = v.where_positive(load_channels(x, left));
    if constexpr (RELU && NORM) v.store(s);
    if constexpr (BASE) {
      v = load_channels(base.data, left) + v;
      base.data += base.w;
    }
    if constexpr (ONTO) {
      v = load_channels(onto.data, left) + v;
      onto.data += onto.w;
    }
    store_channels(v, dx.data, left);
  }
}

template <class T, class X, bool RELU, bool NORM>
void finish_rows(const BranchConv<T>& a, const Scratch<T>& m, int64_t n, int64_t from, int64_t to) {
  const int64_t step = a.in_place() ? a.stride : 1;  // what the stride leaves out stays as it is
  for (int64_t y = (from + step - 1) / step * step; y < to; y += step) {
    each_register<T>(a.Ci, [&](int64_t c, auto left) {
      using Left = decltype(left);
      Image<const T> base = a.base, onto = a.onto;
      Image<T> dx = a.dx;
      if (base.data) base.data = base.at(n, y) + c;
      if (onto.data) onto.data = onto.at(n, y) + c;
      dx.data = dx.at(n, y) + c, dx.w *= step, onto.w *= step;
      // Without a norm relu's input is x itself.
      const Image<const X> image = stored_as<X>(a.x);
      using Input = std::conditional_t<NORM, T, X>;
      const Input* x;
      if constexpr (NORM) x = m.x.pixel(c, y);
      else x = image.at(n, y) + c;
      const auto alone = base.data ? finish_row<T, RELU, NORM, true, false, Input, Left>
                                   : finish_row<T, RELU, NORM, false, false, Input, Left>;
      const auto added = base.data ? finish_row<T, RELU, NORM, true, true, Input, Left>
                                   : finish_row<T, RELU, NORM, false, true, Input, Left>;
      const auto row = onto.data ? added : alone;
      row((a.W - 1) / step + 1, m.sum(c, y), step * Vec<T>::size, x, step * (NORM ? Vec<T>::size : image.w), base, onto,
          left, dx);
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
      const T* s = m.sum(c, y);
      interleaved<T>(pixels, [=](int64_t p, V v) { return v + V::load(s + p * V::size); }).store(part + c);
      // Where relu cut, the gradient is zero: relu's output serves for norm(x).
      const T* x = m.x.pixel(c, y);
      const int64_t row = m.x.width * V::size;
      interleaved_rows<T>(pixels / a.W, a.W, [=](int64_t p, int64_t r, int64_t u, V v) {
        return V::fma(V::load(s + p * V::size), V::load(x + r * row + u * V::size), v);
      }).store(part + m.Ci + c);
    }
  }
}

// x is stored as X, every z as Z.
template <class T, class X, class Z>
void branch_conv_backward_image(const BranchConv<T>& a, int64_t n, T* memory, bool first) {
  Ahead ahead;
  const Scratch<T> m(a, memory, ahead);
  bool image = a.norm;  // whether anything but relu's mask needs x
  for (int64_t i = 0; i < a.branches; ++i) image |= a.branch[i].pointwise_grad || a.branch[i].taps_grad;
  if (first && image) m.x.zero_border(a.Ci);
  if (first && a.dx.data) m.d.zero_border(a.branches * m.Ci);
  const auto finish = a.norm ? (a.relu ? finish_rows<T, X, true, true> : finish_rows<T, X, false, true>)
                             : (a.relu ? finish_rows<T, X, true, false> : finish_rows<T, X, false, false>);
  const int64_t step = chunk_rows(a.Wo);
  int64_t loaded = 0, done = 0;
  for (int64_t y = 0; y < a.Ho; y += step) {
    const int64_t rows = y + step <= a.Ho ? step : a.Ho - y, needed = rows_read(a, m.x.border, y + rows);
    if (image) load_rows(a, stored_as<X>(a.x), n, m, loaded, needed);
    loaded = needed;
    ask_backward<T, X, Z>(a, NextTile(a, n, y + step), image, ahead);
    for (int64_t i = 0; i < a.branches; ++i) branch_gradient<T, Z>(a, i, m, n, y, rows);
    if (!a.dx.data) continue;
    const int64_t complete = rows_complete(a, m.x.border, y + rows);
    for (int64_t i = 0; i < a.branches; ++i) {
      const auto adjoint = a.branch[i].taps ? adjoint_depthwise<T> : adjoint_stride<T>;
      adjoint(a, i, m, done, complete);
    }
    finish(a, m, n, done, complete);
    if (a.norm_sums) norm_gradient(a, m, n, done, complete);
    done = complete;
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
