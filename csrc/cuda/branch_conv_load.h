// What the kernels of branch_conv load, four channels at a time: in 16 bytes where everything is aligned to them (WIDE).
#pragma once

#include <map>
#include <type_traits>
#include <vector>

#include "../alpha_softmax.h"
#include "branch_conv_backward.h"
#include "group.h"
#include "stored.h"

namespace dartsfast::cuda {

template <class T>
struct Four {
  T v[4];
};

template <class T, class F>
__device__ __forceinline__ Four<T> four(F f) {
  Four<T> r;
#pragma unroll
  for (int i = 0; i < 4; ++i) r.v[i] = f(i);
  return r;
}

// Memory on 16 bytes.
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* p) {
  Four<T> r;
#pragma unroll
  for (int i = 0; i < 4; i += kWide<T>) {
    const auto part = Pack<T, kWide<T>>::load(p + i);
#pragma unroll
    for (int k = 0; k < kWide<T>; ++k) r.v[i + k] = part.v[k];
  }
  return r;
}
template <class T>
__device__ __forceinline__ Pack<T, 4> packed(const Four<T>& v) {
  return {v.v[0], v.v[1], v.v[2], v.v[3]};
}
template <class T>
__device__ __forceinline__ void store_four(const Four<T>& v, T* p) {
  write_own(packed(v), p);
}
// The same to the device's memory.
template <class T>
__device__ __forceinline__ void store_four_out(const Four<T>& v, T* p) {
  write_out(packed(v), p);
}

// `left` channels are there, a multiple of 4 where the memory, the device's, is WIDE; beyond them are zeros.
template <bool WIDE, class T>
__device__ __forceinline__ Four<T> load_four(const T* p, int left) {
  if constexpr (WIDE) return left > 0 ? load_four(p) : Four<T>{};
  else return four<T>([=](int i) { return i < left ? p[i] : T(0); });
}
// The same of an image in any storage, from channel c of a pixel on. By value: of a reference the compiler keeps more in
// registers than some kernels have.
template <bool WIDE, class T>
__device__ __forceinline__ Four<T> load_four(StoredImage image, Storage as, int n, int y, int x, int c, int left) {
  if (as == Storage::own) return load_four<WIDE>(image.own<T>(n, y, x) + c, left);
  const int64_t at = image.at(n, y, x, c);
  if constexpr (WIDE) {
    if (left <= 0) return Four<T>{};
    const auto v = read<T, 4>(image.data, as, at);
    return four<T>([&](int i) { return v.v[i]; });
  } else {
    return four<T>([&](int i) { return i < left ? read<T, 1>(image.data, as, at + i).v[0] : T(0); });
  }
}

template <bool WIDE, class T>
__device__ __forceinline__ void store_four(const Four<T>& v, T* p, int left) {
  if constexpr (WIDE) {
    if (left > 0) store_four_out(v, p);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < left) p[i] = v.v[i];
    }
  }
}

// Channels c to c + 3 of dz at output pixels, z stored as `as`; NORMED: z is there.
template <class T, bool WIDE, bool NORMED = false>
struct GradientChannels {
  const OutputGradient<T>& dz;
  int c, left;
  Four<T> shift, mu, r, k;

  __device__ __forceinline__ GradientChannels(const OutputGradient<T>& dz, int c, int Co) : dz(dz), c(c), left(Co - c) {
    if (!NORMED && !dz.z.data) return;
    const auto row = [&](int i) { return load_four<WIDE>(dz.coef + i * dz.step + c, left); };
    shift = row(0), mu = row(1), r = row(2), k = row(3);
  }
  __device__ __forceinline__ Four<T> at(Storage as, int n, int y, int x) const {
    const auto g = load_four<WIDE>(dz.g.at(n, y) + x * dz.g.w + c, left);
    if (!NORMED && !dz.z.data) return g;
    const auto z = load_four<WIDE, T>(dz.z, as, n, y, x, c, left);
    return four<T>([&](int i) { return ((g.v[i] - shift.v[i]) - (z.v[i] - mu.v[i]) * r.v[i]) * k.v[i]; });
  }
};

// Channels c to c + 3 of relu(norm(x)) at input pixels, zero beyond the image's border; x is stored as `as`.
template <class T, bool WIDE>
struct InputChannels {
  const Activated<T>& in;
  int c, left;
  Four<T> mean, rstd;

  __device__ __forceinline__ InputChannels(const Activated<T>& in, int c, int Ci) : in(in), c(c), left(Ci - c) {
    if (!in.norm) return;
    mean = load_four<WIDE>(in.norm + c, left), rstd = load_four<WIDE>(in.norm + Ci + c, left);
  }
  __device__ __forceinline__ Four<T> at(Storage as, int n, int y, int x) const {
    auto v = load_four<WIDE, T>(in.x, as, n, y, x, c, left);
    if (in.norm) v = four<T>([&](int i) { return (v.v[i] - mean.v[i]) * rstd.v[i]; });
    // NaN passes.
    if (in.relu) v = four<T>([&](int i) { return v.v[i] < 0 ? T(0) : v.v[i]; });
    return v;
  }
  __device__ __forceinline__ Four<T> within(Storage as, const ConvShape& s, int n, int y, int x) const {
    return y >= 0 && y < s.H && x >= 0 && x < s.W ? at(as, n, y, x) : Four<T>{};
  }
};

// The taps of 16 channels from c on, weights [Ci, K*K], to shared memory [K*K, 16]; zeros beyond Ci.
template <class T>
__device__ void load_taps(const T* taps, int count, int c, int Ci, T* to) {
  for (int i = threadIdx.x; i < count * 16; i += blockDim.x) {
    const int channel = c + i % 16;
    to[i] = channel < Ci ? taps[static_cast<int64_t>(channel) * count + i / 16] : T(0);
  }
}

template <class T>
bool wide(const Image<T>& a) {
  return !a.data || wide<std::remove_const_t<T>>(a.data, a.n, a.h, a.w);
}
template <class T>
bool wide(const OutputGradient<T>& dz, int32_t Co) {
  return Co % 4 == 0 && wide(dz.g) && wide<4, T>(dz.z) && (!dz.coef || wide<T>(dz.coef, dz.step));
}
template <class T>
bool wide(const Activated<T>& in, int32_t Ci) {
  return Ci % 4 == 0 && wide<4, T>(in.x) && wide<T>(in.norm);
}

// Whether a branch reads images that are stored in 16 bits.
template <class T>
bool halved(const Activated<T>& in, const OutputGradient<T>& dz) {
  return in.x.storage != Storage::own || dz.z.storage != Storage::own;
}

// launch(kind, group, count) for the calls, those of a kind together.
template <class A, class Kind, class F>
void each_kind(const std::vector<A>& calls, Kind kind, F launch) {
  std::map<int, std::vector<const A*>> kinds;
  for (const A& call : calls) kinds[kind(call)].push_back(&call);
  for (const auto& [k, some] : kinds) {
    each_group(some, [&launch, k = k](const Group<A>& group, int count) { launch(k, group, count); });
  }
}

}  // namespace dartsfast::cuda
