// branch_conv, one image at a time: every branch of an edge from one padded copy of its input.
// Images and tiles in scratch memory are blocked: [C' / lanes, height, width, lanes].
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

  Scratch(const BranchConv<T>& a, T* memory) : Ci(padded(a.Ci)), Co(padded(a.Co)), P(border(a)) {
    Q = P / a.stride + 1;
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
    d = dt + tile * Ci / L;     // [Ho + 2Q, Wo + 2Q] the same of the image, zero border
    s = d + d_block * Ci / L;   // [H, W] gradient of relu's output, all branches
  }
  // What must be zero before the first image: borders, and lanes beyond the channels.
  int64_t zeros(bool backward) const { return (backward ? s : dt) - x; }
  T* pixel(int64_t c, int64_t y) const { return x + c / L * x_block + ((y + P) * Wp + P) * L; }
};

// Copy x into the padded image through norm and relu.
template <class T>
void load_image(const BranchConv<T>& a, int64_t n, const Scratch<T>& m) {
  using V = Vec<T>;
  const int64_t W = a.W, step = a.x.w;
  for (int64_t y = 0; y < a.H; ++y) {
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      const int64_t left = a.Ci - c;
      const T* row = a.x.at(n, y) + c;
      T* out = m.pixel(c, y);
      if (a.norm) {
        const V mean = V::load(a.norm + c), rstd = V::load(a.norm + m.Ci + c);
        for (int64_t u = 0; u < W; ++u) {
          const V v = (load_channels(row + u * step, left) - mean) * rstd;
          (a.relu ? v.relu() : v).store(out + u * V::size);
        }
      } else if (a.relu) {
        for (int64_t u = 0; u < W; ++u) load_channels(row + u * step, left).relu().store(out + u * V::size);
      } else {
        for (int64_t u = 0; u < W; ++u) load_channels(row + u * step, left).store(out + u * V::size);
      }
    }
  }
}

template <class T>
void depthwise_row(const TapsRow<T>& row, int64_t count, int64_t stride) {
  stride == 1 ? taps_row<T, 1>(row, count) : taps_row<T, 2>(row, count);
}

// Ask for share `part` of `parts` of the next image while this one is being computed.
template <class T>
void prefetch_image(const BranchConv<T>& a, int64_t n, int64_t part, int64_t parts) {
  if (n + 1 >= a.N) return;
  for (int64_t y = a.H * part / parts; y < a.H * (part + 1) / parts; ++y) {
    prefetch<false>(a.x.at(n + 1, y), a.W * a.x.w * sizeof(T));
  }
}

// The depthwise output of `rows` output rows from y0 on, to tile t.
template <class T>
void depthwise_tile(const BranchConv<T>& a, const Branch<T>& b, const Taps& taps, const Scratch<T>& m, int64_t y0,
                    int64_t rows) {
  using V = Vec<T>;
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    for (int64_t y = 0; y < rows; ++y) {
      T* out = m.t + c / V::size * m.tile + y * a.Wo * V::size;
      if (b.taps) {
        const T* in = m.x + c / V::size * m.x_block + (y0 + y) * a.stride * m.Wp * V::size;
        depthwise_row<T>({&taps, m.Wp, in, b.taps + c, m.Ci, out, V::size, false}, a.Wo, a.stride);
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
  load_image(a, n, m);
  const int64_t step = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo);
  for (int64_t i = 0; i < a.branches; ++i) {
    const Branch<T>& b = a.branch[i];
    const Taps taps = forward_taps(b.kernel, b.dilation, m.P, m.Wp);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t y = k * step, rows = y + step <= a.Ho ? step : a.Ho - y, pixels = rows * a.Wo;
      prefetch_image(a, n, i * count + k, a.branches * count);
      depthwise_tile(a, b, taps, m, y, rows);
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

// dz of `rows` output rows from y0 on, formed from g and z, to tile z.
template <class T>
void gradient_tile(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, int64_t n, int64_t y0,
                   int64_t rows) {
  using V = Vec<T>;
  const int64_t W = a.Wo, g_step = b.g.w, z_step = b.saved.w;
  if (y0 + rows < a.Ho) {
    prefetch<false>(b.g.at(n, y0 + rows), rows * W * g_step * sizeof(T));
    if (b.saved.data) prefetch<false>(b.saved.at(n, y0 + rows), rows * W * z_step * sizeof(T));
  }
  for (int64_t c = 0; c < a.Co; c += V::size) {
    const int64_t left = a.Co - c;
    T* out = m.z + c / V::size * m.tile;
    for (int64_t y = 0; y < rows; ++y, out += W * V::size) {
      const T* g = b.g.at(n, y0 + y) + c;
      if (!b.saved.data) {
        for (int64_t u = 0; u < W; ++u) load_channels(g + u * g_step, left).store(out + u * V::size);
        continue;
      }
      // coef is padded with zeros, so lanes beyond Co give zero.
      const T *z = b.saved.at(n, y0 + y) + c, *coef = b.coef + c;
      const V shift = V::load(coef), mu = V::load(coef + m.Co), r = V::load(coef + 2 * m.Co),
              k = V::load(coef + 3 * m.Co);
      for (int64_t u = 0; u < W; ++u) {
        const V gv = load_channels(g + u * g_step, left), zv = load_channels(z + u * z_step, left);
        (((gv - shift) - (zv - mu) * r) * k).store(out + u * V::size);
      }
    }
  }
}

// Everything of a branch but the adjoint depthwise: dz, its way through the pointwise, weight gradients.
template <class T>
void branch_gradient(const BranchConv<T>& a, int64_t i, const Scratch<T>& m, int64_t n) {
  using V = Vec<T>;
  const Branch<T>& b = a.branch[i];
  const int64_t step = chunk_rows(a.Wo), row = a.Wo * V::size, KK = b.kernel * b.kernel;
  const Taps taps = forward_taps(b.kernel, b.dilation, m.P, m.Wp);
  T* taps_sum = b.taps_grad ? b.taps_grad + n * KK * m.Ci : nullptr;
  T* pointwise_sum = b.pointwise_grad ? b.pointwise_grad + n * a.Ci * m.Co : nullptr;
  if (taps_sum) __builtin_memset(taps_sum, 0, KK * m.Ci * sizeof(T));
  if (pointwise_sum) __builtin_memset(pointwise_sum, 0, a.Ci * m.Co * sizeof(T));
  for (int64_t y = 0; y < a.Ho; y += step) {
    const int64_t rows = y + step <= a.Ho ? step : a.Ho - y, pixels = rows * a.Wo;
    prefetch_image(a, n, i * chunks(a.Ho, a.Wo) + y / step, a.branches * chunks(a.Ho, a.Wo));
    gradient_tile(a, b, m, n, y, rows);
    if (a.dx || taps_sum) {
      gemm<T, false>(pixels, registers<T>(a.Ci), a.Co, {m.z, m.tile}, {b.transposed, m.Ci, V::size},
                     {m.dt, V::size, m.tile}, false);
    }
    if (pointwise_sum) {
      depthwise_tile(a, b, taps, m, y, rows);
      gemm<T, true>(a.Ci, registers<T>(a.Co), pixels, {m.t, m.tile}, {m.z, V::size, m.tile},
                    {pointwise_sum, m.Co, V::size}, true);
    }
    for (int64_t c = 0; c < a.Ci; c += V::size) {
      const T* dt = m.dt + c / V::size * m.tile;
      if (taps_sum) {
        const T* x = m.x + c / V::size * m.x_block + y * a.stride * m.Wp * V::size;
        const auto gradient = a.stride == 1 ? taps_grad<T, 1> : taps_grad<T, 2>;
        gradient(taps, m.Wp, rows, a.Wo, x, dt, taps_sum + c, m.Ci);
      }
      T* d = m.d + c / V::size * m.d_block + ((y + m.Q) * m.Wq + m.Q) * V::size;
      for (int64_t r = 0; a.dx && r < rows; ++r) {
        __builtin_memcpy(d + r * m.Wq * V::size, dt + r * row, row * sizeof(T));
      }
    }
  }
}

// Add (or, for the first branch, write) the branch's gradient of relu's output to s.
template <class T>
void adjoint_depthwise(const BranchConv<T>& a, const Branch<T>& b, const Scratch<T>& m, bool add) {
  using V = Vec<T>;
  for (int64_t py = 0; py < a.stride; ++py) {
    for (int64_t px = 0; px < a.stride; ++px) {
      const Taps taps = adjoint_taps(b.kernel, b.dilation, a.stride, py, px, m.Q, m.Wq);
      const int64_t count = (a.W - px + a.stride - 1) / a.stride;
      for (int64_t c = 0; c < a.Ci; c += V::size) {
        const T* d = m.d + c / V::size * m.d_block;
        T* s = m.s + c / V::size * m.s_block + px * V::size;
        for (int64_t y = py; y < a.H; y += a.stride) {
          taps_row<T, 1>({&taps, m.Wq, d + y / a.stride * m.Wq * V::size, b.taps + c, m.Ci, s + y * a.W * V::size,
                          a.stride * V::size, add},
                         count);
        }
      }
    }
  }
}

// The same without depthwise: the gradient of the pixels that the stride kept.
template <class T>
void adjoint_stride(const BranchConv<T>& a, const Scratch<T>& m, bool add) {
  using V = Vec<T>;
  if (!add) __builtin_memset(m.s, 0, m.s_block * m.Ci / V::size * sizeof(T));
  for (int64_t c = 0; c < a.Ci; c += V::size) {
    for (int64_t y = 0; y < a.Ho; ++y) {
      const T* in = m.d + c / V::size * m.d_block + ((y + m.Q) * m.Wq + m.Q) * V::size;
      T* out = m.s + c / V::size * m.s_block + y * a.stride * a.W * V::size;
      for (int64_t x = 0; x < a.Wo; ++x, in += V::size, out += a.stride * V::size) {
        (V::load(out) + V::load(in)).store(out);
      }
    }
  }
}

// s through relu and onto base, to dx.
template <class T>
void finish_image(const BranchConv<T>& a, const Scratch<T>& m, int64_t n) {
  using V = Vec<T>;
  const int64_t W = a.W, C = a.Ci, base_step = a.base.w;
  for (int64_t y = 0; y < a.H; ++y) {
    for (int64_t c = 0; c < C; c += V::size) {
      const int64_t left = C - c;
      T* s = m.s + c / V::size * m.s_block + y * W * V::size;
      T* row = a.dx + (n * a.H + y) * W * C + c;
      const T* x = m.pixel(c, y);
      const T* base = a.base.data ? a.base.at(n, y) + c : nullptr;
      for (int64_t u = 0; u < W; ++u) {
        V v = V::load(s + u * V::size);
        if (a.relu) v = v.where_positive(V::load(x + u * V::size));
        if (a.norm) v.store(s + u * V::size);
        if (base) v = load_channels(base + u * base_step, left) + v;
        store_channels(v, row + u * C, left);
      }
    }
  }
}

// The channel sums, chunk by chunk, of the gradient of norm(x) and of its product with norm(x).
template <class T>
void norm_gradient(const BranchConv<T>& a, const Scratch<T>& m, int64_t n) {
  using V = Vec<T>;
  const int64_t step = chunk_rows(a.W), count = chunks(a.H, a.W);
  for (int64_t k = 0; k < count; ++k) {
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
  load_image(a, n, m);
  for (int64_t i = 0; i < a.branches; ++i) {
    const Branch<T>& b = a.branch[i];
    branch_gradient(a, i, m, n);
    if (!a.dx) continue;
    if (b.taps) {
      adjoint_depthwise(a, b, m, i > 0);
    } else {
      adjoint_stride(a, m, i > 0);
    }
  }
  if (!a.dx) return;
  finish_image(a, m, n);
  if (a.norm) norm_gradient(a, m, n);
}

}  // namespace dartsfast::DARTSFAST_ISA
