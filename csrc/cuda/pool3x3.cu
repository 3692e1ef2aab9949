// pool3x3: maximum and average of the same nine pixels, and their gradient. Both are bound by memory.
//
// Forward: a block has 8 chunks of 64 pixels or more, a warp each, by 4 groups of channels, 8 lanes a group: lane k has every eighth
// pixel from k on, as the interleaved sums of csrc/order.h do, so that folding them is three shuffles. The nine taps
// come through the first-level cache: from memory an image's rows come once, and the halo of a chunk from the second
// level. The deviations need the mean first, and read again what the lane has just written: 2 reads of z from the
// second level beside 1 of x and 2 writes.
// Backward: every input pixel gathers from the windows that hold it, in ascending order, so that nothing is added
// in memory and no order is left to chance. Maximum and average are made again of the taps that say where the maximum
// was, and a skip's gradient of g, so that an image is read for each of x and g and one written. A block has a tile of
// 8 x 8 input pixels by 16 channels: where the maximum of each window that reaches into the tile comes from, and its two
// gradients, are found once and kept in shared memory (10 x 10 windows at stride 1: 1.56 times the least; scattering
// would need none of that, but a barrier a window row).
#include "pool3x3.h"

#include <type_traits>

#include "finish.h"
#include "group.h"
#include "stored.h"
#include "../alpha_softmax.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kTile = 8, kChannels = 16;
constexpr int kWindows = kTile + 2;  // a side, that reach into a tile at stride 1

// The taps of the window around an output pixel that lie in the image: [y0, y1) x [x0, x1) of 3 x 3.
template <class T, bool HALVES>
struct Window {
  std::conditional_t<HALVES, int64_t, const T*> in;  // the pixel in the middle, its element where there are halves
  int y0, y1, x0, x1;
  __device__ Window(const PoolSize<T>& a, int n, int oy, int ox) {
    const int y = oy * a.stride, x = ox * a.stride;
    if constexpr (HALVES) in = a.x.at(n, y, x, 0);
    else in = a.x.template own<T>(n, y, x);
    y0 = y ? 0 : 1, y1 = y + 1 < a.H ? 3 : 2, x0 = x ? 0 : 1, x1 = x + 1 < a.W ? 3 : 2;
  }
  __device__ T count() const { return static_cast<T>((y1 - y0) * (x1 - x0)); }

  // f(tap 0 to 8, the channels of its pixel from c on) for each that is there, row by row.
  template <int V, class F>
  __device__ void each(const PoolSize<T>& a, int c, F f) const {
    Pack<T, V> taps[9];
    by_storage<HALVES>(a.x.storage, [&](Storage as) {
#pragma unroll
      for (int t = 0; t < 9; ++t) {
        if (!has(t)) continue;
        const auto at = in + (t / 3 - 1) * a.x.h + (t % 3 - 1) * a.x.w + c;
        if constexpr (HALVES) taps[t] = read<T, V>(a.x.data, as, at);
        else taps[t] = Pack<T, V>::load(at);
      }
    });
#pragma unroll
    for (int t = 0; t < 9; ++t) {
      if (has(t)) f(t, taps[t]);
    }
  }
  __device__ bool has(int t) const { return t / 3 >= y0 && t / 3 < y1 && t % 3 >= x0 && t % 3 < x1; }
};

// Whether x beats a maximum: greater, or NaN.
template <class T>
__device__ bool beats(T x, T most) {
  return x > most || x != x;
}

// The 8 interleaved sums of a group of lanes, folded.
template <class T, int V>
__device__ void fold(Pack<T, V>& sum) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int other = 1; other < 8; other *= 2) sum.v[v] = sum.v[v] + __shfl_xor_sync(~0u, sum.v[v], other);
  }
}

// A warp's pixels: those of a chunk, `interleave` and every eighth from there on.
template <class T>
struct Chunk {
  int n, y, pixels;
  int64_t number;
  __device__ Chunk(const PoolSize<T>& a, int64_t number) : number(number) {
    const int rows = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo);
    n = number / count, y = number % count * rows;
    pixels = (y + rows <= a.Ho ? rows : a.Ho - y) * a.Wo;
  }
  __device__ int64_t first(const PoolSize<T>& a) const { return static_cast<int64_t>(n * a.Ho + y) * a.Wo; }
};

template <class T, int V, bool HALVES>
__global__ void __launch_bounds__(kThreads) pool3x3_kernel(const __grid_constant__ Group<Pool3x3<T>> group) {
  const Pool3x3<T>& call = group.member[blockIdx.z];
  const PoolSize<T>& a = call.size;
  const int lane = threadIdx.x % 32, interleave = lane % 8, blocks = (a.C + 4 * V - 1) / (4 * V);
  const int first = blockIdx.x / blocks * kWarps, count = call.arrivals.count;
  if (first >= count) return;
  const Chunk<T> chunk(a, first + threadIdx.x / 32);
  const int c = (blockIdx.x % blocks * 4 + lane / 8) * V;
  const bool here = c < a.C && chunk.number < count;
  Pack<T, V> mean[2] = {Pack<T, V>::zero(), Pack<T, V>::zero()}, squares[2] = {mean[0], mean[1]};
  for (int p = interleave; here && p < chunk.pixels; p += 8) {
    const Window<T, HALVES> w(a, chunk.n, chunk.y + p / a.Wo, p % a.Wo);
    Pack<T, V> most, average = Pack<T, V>::zero();
    for (int v = 0; v < V; ++v) most.v[v] = -__builtin_inf();
    w.template each<V>(a, c, [&](int, const Pack<T, V>& x) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        most.v[v] = beats(x.v[v], most.v[v]) ? x.v[v] : most.v[v];
        average.v[v] = average.v[v] + x.v[v];
      }
    });
    const T count = w.count();
#pragma unroll
    for (int v = 0; v < V; ++v) average.v[v] = average.v[v] / count;
    const int64_t pixel = (chunk.first(a) + p) * a.C + c;
    by_storage<HALVES>(call.storage, [&](Storage as) {
      most = rounded(most, as), average = rounded(average, as);
      if (call.z[0]) write(most, call.z[0], as, pixel);
      if (call.z[1]) write(average, call.z[1], as, pixel);
    });
#pragma unroll
    for (int v = 0; v < V; ++v) mean[0].v[v] = mean[0].v[v] + most.v[v], mean[1].v[v] = mean[1].v[v] + average.v[v];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    fold(mean[half]);
#pragma unroll
    for (int v = 0; v < V; ++v) mean[half].v[v] = mean[half].v[v] / static_cast<T>(chunk.pixels);
    by_storage<HALVES>(call.storage, [&](Storage as) {
      for (int p = interleave; here && call.z[half] && p < chunk.pixels; p += 8) {
        const auto z = read<T, V>(call.z[half], as, (chunk.first(a) + p) * a.C + c);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const T d = z.v[v] - mean[half].v[v];
          squares[half].v[v] = fused(d, d, squares[half].v[v]);
        }
      }
    });
    fold(squares[half]);
    if (!here || interleave != 0) continue;
    T* const part = call.stat[half].parts + chunk.number * 2 * a.C + c;
    mean[half].store_out(part), squares[half].store_out(part + a.C);
  }
  const Arrivals all{call.arrivals.tickets, count, blocks};
  const auto at = [&](int i) { return moments_of(call.stat[i / a.C], i % a.C, a.Ho, a.Wo, count); };
  if (!finish(all, first, first + kWarps < count ? first + kWarps : count, 2 * a.C, at)) return;
  for (const auto& stat : call.stat) make_statistic(stat, static_cast<T>(static_cast<int64_t>(a.N) * a.Ho * a.Wo));
}

// The gradient of z, which is made again: that of the node, through batch norm, or z's own.
template <class T, int V>
__device__ Pack<T, V> gradient(const Pool3x3Backward<T>& a, int half, int n, int y, int x, int c, Pack<T, V> z) {
  auto g = Pack<T, V>::load(a.g[half].at(n, y) + x * a.g[half].w + c);
  if (!a.coef[half]) return g;
  const int C = a.size.C;
  const T* const k = a.coef[half] + c;
  if (a.z[half].data) z = Pack<T, V>::load(a.z[half].at(n, y) + x * a.z[half].w + c);
  const auto m = Pack<T, V>::load(k), mu = Pack<T, V>::load(k + C), r = Pack<T, V>::load(k + 2 * C);
  const auto rho = Pack<T, V>::load(k + 3 * C);
#pragma unroll
  for (int v = 0; v < V; ++v) g.v[v] = ((g.v[v] - m.v[v]) - (z.v[v] - mu.v[v]) * r.v[v]) * rho.v[v];
  return g;
}

// What a window gives to its pixels: to that of one tap the maximum's gradient, to all the average's share.
template <class T>
struct alignas(16) Given {  // packs are moved at once
  T maximum[kWindows * kWindows][kChannels], share[kWindows * kWindows][kChannels];
  unsigned char where[kWindows * kWindows][kChannels];
};

template <class T, int V, bool HALVES>
__device__ void find(const Pool3x3Backward<T>& a, int n, int y, int x, int c, Given<T>& given, int place, int slot) {
  const Window<T, HALVES> w(a.size, n, y, x);
  Pack<T, V> most, average = Pack<T, V>::zero();
  Pack<unsigned char, V> where;
#pragma unroll
  for (int v = 0; v < V; ++v) most.v[v] = -__builtin_inf(), where.v[v] = w.y0 * 3 + w.x0;
  w.template each<V>(a.size, c, [&](int tap, const Pack<T, V>& at) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool better = beats(at.v[v], most.v[v]);
      most.v[v] = better ? at.v[v] : most.v[v], where.v[v] = better ? tap : where.v[v];
      average.v[v] = average.v[v] + at.v[v];
    }
  });
  where.store(&given.where[place][slot]), gradient<T, V>(a, 0, n, y, x, c, most).store(&given.maximum[place][slot]);
  const T count = w.count();
#pragma unroll
  for (int v = 0; v < V; ++v) average.v[v] = average.v[v] / count;
  auto share = gradient<T, V>(a, 1, n, y, x, c, average);
#pragma unroll
  for (int v = 0; v < V; ++v) share.v[v] = share.v[v] / count;
  share.store(&given.share[place][slot]);
}

// The first window that reaches a pixel; they do at distance 1 from their middle.
__device__ inline int first_window(int at, int stride) { return at ? (at - 1 + stride - 1) / stride : 0; }
__device__ inline int last_window(int at, int stride, int count) {
  return (at + 1) / stride < count ? (at + 1) / stride : count - 1;
}

// Two blocks at least: left to itself the compiler makes room for more, and spills.
template <class T, int V, bool HALVES>
__global__ void __launch_bounds__(kThreads, 2)
    pool3x3_backward_kernel(const __grid_constant__ Group<Pool3x3Backward<T>> group) {
  __shared__ Given<T> given;
  const Pool3x3Backward<T>& a = group.member[blockIdx.z];
  const PoolSize<T>& s = a.size;
  constexpr int kGroups = kChannels / V;
  const int blocks = (s.C + kChannels - 1) / kChannels, across = (s.W + kTile - 1) / kTile, down = (s.H + kTile - 1) / kTile;
  const int y0 = blockIdx.x / blocks / across % down * kTile, x0 = blockIdx.x / blocks % across * kTile;
  const int n = blockIdx.x / blocks / across / down, channels = blockIdx.x % blocks * kChannels;
  if (n >= s.N) return;
  const int slot = threadIdx.x % kGroups * V, c = channels + slot;
  const bool here = c < s.C;
  const int wy = first_window(y0, s.stride), wx = first_window(x0, s.stride);
  const int rows = last_window(min(y0 + kTile, s.H) - 1, s.stride, s.Ho) - wy + 1;
  const int columns = last_window(min(x0 + kTile, s.W) - 1, s.stride, s.Wo) - wx + 1;
  for (int i = threadIdx.x / kGroups; here && i < rows * columns; i += kThreads / kGroups) {
    find<T, V, HALVES>(a, n, wy + i / columns, wx + i % columns, c, given, i / columns * kWindows + i % columns, slot);
  }
  __syncthreads();
  for (int i = threadIdx.x / kGroups; here && i < kTile * kTile; i += kThreads / kGroups) {
    const int y = y0 + i / kTile, x = x0 + i % kTile;
    if (y >= s.H || x >= s.W) continue;
    Pack<T, V> sum = Pack<T, V>::zero();
    for (int oy = first_window(y, s.stride); oy <= last_window(y, s.stride, s.Ho); ++oy) {
      for (int ox = first_window(x, s.stride); ox <= last_window(x, s.stride, s.Wo); ++ox) {
        const int tap = (y - oy * s.stride + 1) * 3 + (x - ox * s.stride + 1), place = (oy - wy) * kWindows + ox - wx;
        const auto maximum = Pack<T, V>::load(&given.maximum[place][slot]);
        const auto share = Pack<T, V>::load(&given.share[place][slot]);
        const auto where = Pack<unsigned char, V>::load(&given.where[place][slot]);
#pragma unroll
        for (int v = 0; v < V; ++v) sum.v[v] = sum.v[v] + ((where.v[v] == tap ? maximum.v[v] : T(0)) + share.v[v]);
      }
    }
    if (a.base.data || a.skip) {
      auto below = a.base.data ? Pack<T, V>::load(a.base.at(n, y) + x * a.base.w + c) : Pack<T, V>::zero();
      if (a.skip) {
        const auto g = Pack<T, V>::load(a.g[0].at(n, y) + x * a.g[0].w + c);
#pragma unroll
        for (int v = 0; v < V; ++v) below.v[v] = fused(*a.skip, g.v[v], below.v[v]);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) sum.v[v] = below.v[v] + sum.v[v];
    }
    sum.store_out(a.dx.at(n, y) + x * a.dx.w + c);
  }
}

template <class T, class U>
bool whole(const Image<U>& i) {
  return !i.data || wide<T>(i.data, i.n, i.h, i.w);
}
template <class T>
bool whole(const PoolSize<T>& a) {
  return a.C % kWide<T> == 0 && wide<kWide<T>, T>(a.x);
}
template <class T>
bool whole(const Pool3x3<T>& a) {
  return whole(a.size) && wide<kWide<T>, T>(a.z[0], a.storage) && wide<kWide<T>, T>(a.z[1], a.storage);
}
template <class T>
bool whole(const Pool3x3Backward<T>& a) {
  bool good = whole(a.size) && whole<T>(a.dx) && whole<T>(a.base);
  for (int half = 0; half < 2; ++half) good = good && whole<T>(a.g[half]) && whole<T>(a.z[half]) && wide<T>(a.coef[half]);
  return good;
}

template <class T>
bool halved(const Pool3x3<T>& a) {
  return a.size.x.storage != Storage::own || a.storage != Storage::own;
}
template <class T>
bool halved(const Pool3x3Backward<T>& a) {
  return a.size.x.storage != Storage::own;
}

// The calls by groups, those whose rows are all aligned with the first kernel; blocks(call): how many one needs.
template <class A, class F>
void launch_all(const std::vector<const A*>& calls, void (*wide)(Group<A>), void (*any)(Group<A>), Stream stream,
                F blocks) {
  const auto [aligned, others] = parted(calls, [](const A& call) { return whole(call); });
  for (const bool all : {true, false}) {
    each_group(all ? aligned : others, [=](const Group<A>& group, int count) {
      int64_t most = 0;
      for (int k = 0; k < count; ++k) most = std::max(most, blocks(group.member[k], all));
      launch(all ? wide : any, dim3(most, 1, count), dim3(kThreads), 0, stream, group);
    });
  }
}

}  // namespace

template <class T>
void pool3x3(const std::vector<const Pool3x3<T>*>& calls, Stream stream) {
  const auto blocks = [](const auto& call, bool all) {
    const PoolSize<T>& a = call.size;
    return blocks_of(call.arrivals.count, kWarps) * blocks_of(a.C, 4 * (all ? kWide<T> : 1));
  };
  constexpr int V = kWide<T>;
  const auto [halves, own] = parted(calls, [](const auto& call) { return halved(call); });
  launch_all<Pool3x3<T>>(own, pool3x3_kernel<T, V, false>, pool3x3_kernel<T, 1, false>, stream, blocks);
  if constexpr (kServesHalves<T>) {
    launch_all<Pool3x3<T>>(halves, pool3x3_kernel<T, V, true>, pool3x3_kernel<T, 1, true>, stream, blocks);
  }
}

template <class T>
void pool3x3_backward(const std::vector<const Pool3x3Backward<T>*>& calls, Stream stream) {
  const auto blocks = [](const auto& call, bool) {
    const PoolSize<T>& a = call.size;
    return a.N * blocks_of(a.H, kTile) * blocks_of(a.W, kTile) * blocks_of(a.C, kChannels);
  };
  constexpr int V = kWide<T>;
  const auto [halves, own] = parted(calls, [](const auto& call) { return halved(call); });
  launch_all<Pool3x3Backward<T>>(own, pool3x3_backward_kernel<T, V, false>, pool3x3_backward_kernel<T, 1, false>, stream,
                                 blocks);
  if constexpr (kServesHalves<T>) {
    launch_all<Pool3x3Backward<T>>(halves, pool3x3_backward_kernel<T, V, true>, pool3x3_backward_kernel<T, 1, true>, stream,
                                   blocks);
  }
}

template void pool3x3(const std::vector<const Pool3x3<float>*>&, Stream);
template void pool3x3(const std::vector<const Pool3x3<double>*>&, Stream);
template void pool3x3_backward(const std::vector<const Pool3x3Backward<float>*>&, Stream);
template void pool3x3_backward(const std::vector<const Pool3x3Backward<double>*>&, Stream);

}  // namespace dartsfast::cuda
