// branch_conv's forward at any size.
//
// A block has a chunk of csrc/order.h (64 pixels, or a row where rows are longer: then one tile of 64 pixels after the
// other) and up to 64 output channels of one branch. The depthwise result t of 128 bytes of input channels a pixel goes
// through shared memory into the product, whose sums, 4 pixels by 4 channels a thread, stay in registers for all input
// channels: every output is one chain of fma, input channels ascending. z is written once; on its way it passes through
// shared memory, where 8 neighbouring lanes are the 8 interleaved sums of a channel, so that folding them is three
// shuffles.
//
// Bytes: x is read from memory once a branch and Co / 64 (its taps come from the first-level cache), z is written once,
// moments are 2 / 64 of z. Ideal is x once for all branches: for the four first-stage branches of an edge 8 images are
// moved where 5 would do, 1.6 times as many. csrc/cuda/branch_conv_tile.cu does better at the sizes that matter.
// A load from the first-level cache a tap bounds it, 4 fma at 16 bytes; without depthwise the product's fma do.
#include "branch_conv.h"

#include "branch_conv_tile.h"
#include "finish.h"
#include "group.h"
#include "pack.h"
#include "../alpha_softmax.h"

namespace dartsfast::cuda {
namespace {

constexpr int kPixels = 64, kQuad = 4;  // pixels of a tile; pixels and channels of a thread

// One branch of a call.
template <class T>
struct Single {
  int32_t N, H, W, Ci, Co, Ho, Wo, stride, kernel, dilation;
  bool relu, wide_z;
  Image<const T> x;
  const T *norm, *taps, *pointwise;
  T* z;
  int64_t z_pitch;
  Statistic<T> stat;
  Arrivals arrivals;
};

// Places in shared memory, in elements: t [pixels, slice] and the weights [slice, CO], or z [pixels, CO]; then taps
// [K*K, slice]. Rows are 16 bytes longer, so that neighbours in a column are in other banks.
template <class T, int CO>
struct Places {
  static constexpr int threads = CO * kPixels / (kQuad * kQuad), slice = 128 / sizeof(T);
  static constexpr int pitch = slice + kWide<T>, co_pitch = CO + kWide<T>;
  static constexpr int weights = kPixels * pitch, product = weights + slice * co_pitch, z = kPixels * co_pitch;
  static constexpr int taps = product > z ? product : z;
  static size_t bytes(const Single<T>& a) {
    return (taps + (a.taps ? a.kernel * a.kernel * pitch : 0)) * sizeof(T);
  }
};

// Four elements on a multiple of 16 bytes.
template <class T>
struct Quad {
  T v[kQuad];

  __device__ static Quad load(const T* p) {
    Quad q;
#pragma unroll
    for (int k = 0; k < kQuad; k += kWide<T>) {
      const auto part = Pack<T, kWide<T>>::load(p + k);
#pragma unroll
      for (int i = 0; i < kWide<T>; ++i) q.v[k + i] = part.v[i];
    }
    return q;
  }
  __device__ void store(T* p) const {
#pragma unroll
    for (int k = 0; k < kQuad; k += kWide<T>) {
      Pack<T, kWide<T>> part;
#pragma unroll
      for (int i = 0; i < kWide<T>; ++i) part.v[i] = v[k + i];
      part.store(p + k);
    }
  }
};

template <class T>
struct Outputs {
  Quad<T> pixel[kQuad];
};

// The chunk of a block: `pixels` output pixels of image n from row y on.
struct Chunk {
  int64_t index;
  int32_t n, y, pixels;
};

// Pixel (y, x) of an image after norm and relu, zero outside of it.
template <class T, int V>
struct Input {
  const Single<T>& a;
  int32_t n, c;
  Pack<T, V> mean, rstd;

  __device__ Input(const Single<T>& a, int32_t n, int32_t c) : a(a), n(n), c(c), mean{}, rstd{} {
    if (a.norm) mean = Pack<T, V>::load(a.norm + c), rstd = Pack<T, V>::load(a.norm + a.Ci + c);
  }
  __device__ Pack<T, V> at(int32_t y, int32_t x) const {
    if (y < 0 || y >= a.H || x < 0 || x >= a.W) return Pack<T, V>::zero();
    auto v = Pack<T, V>::load(a.x.at(n, y) + x * a.x.w + c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (a.norm) v.v[i] = (v.v[i] - mean.v[i]) * rstd.v[i];
      if (a.relu) v.v[i] = v.v[i] < 0 ? T(0) : v.v[i];
    }
    return v;
  }
};

// The weights of `left` input channels from c on, to shared memory: pointwise [slice, CO], zeros beyond Co, and taps.
template <class T, int V, int CO>
__device__ void load_weights(const Single<T>& a, int c, int left, int co, T* shared) {
  using P = Places<T, CO>;
  for (int i = threadIdx.x; i < P::slice / V * CO; i += P::threads) {
    const int k = (i / (4 * CO) * 4 + i % 4) * V, o = i / 4 % CO;  // four lanes a row
    if (k >= left) continue;
    auto w = Pack<T, V>::zero();
    if (co + o < a.Co) w = Pack<T, V>::load(a.pointwise + static_cast<int64_t>(co + o) * a.Ci + c + k);
#pragma unroll
    for (int v = 0; v < V; ++v) shared[P::weights + (k + v) * P::co_pitch + o] = w.v[v];
  }
  if (!a.taps) return;
  const int taps = a.kernel * a.kernel;
  const T* const from = a.taps + static_cast<int64_t>(c) * taps;
  for (int i = threadIdx.x; i < taps * left; i += P::threads) {
    shared[P::taps + i % taps * P::pitch + i / taps] = from[i];
  }
}

// t of the pixels from `first` of the chunk on, `left` input channels from c on; zero beyond the chunk.
template <class T, int V, int CO>
__device__ void depthwise(const Single<T>& a, const Chunk& chunk, int first, int c, int left, T* shared) {
  using P = Places<T, CO>;
  const int K = a.kernel, reach = K / 2 * a.dilation;
  for (int i = threadIdx.x; i < kPixels * (P::slice / V); i += P::threads) {
    const int k = i % (P::slice / V) * V, pixel = i / (P::slice / V), p = first + pixel;
    if (k >= left) continue;
    auto t = Pack<T, V>::zero();
    if (p < chunk.pixels) {
      const Input<T, V> input(a, chunk.n, c + k);
      const int y = (chunk.y + p / a.Wo) * a.stride, x = p % a.Wo * a.stride;
      if (!a.taps) t = input.at(y, x);
      for (int tap = 0; a.taps && tap < K * K; ++tap) {
        const auto v = input.at(y - reach + tap / K * a.dilation, x - reach + tap % K * a.dilation);
        const auto w = Pack<T, V>::load(shared + P::taps + tap * P::pitch + k);
#pragma unroll
        for (int j = 0; j < V; ++j) t.v[j] = fused(v.v[j], w.v[j], t.v[j]);
      }
    }
    t.store(shared + pixel * P::pitch + k);
  }
}

// The first pixel and channel of a tile that are this thread's; its pixels are a fourth of the tile apart.
template <int CO>
__device__ int own_pixel() { return threadIdx.x / (CO / kQuad); }
template <int CO>
__device__ int own_channel() { return threadIdx.x % (CO / kQuad) * kQuad; }
constexpr int kApart = kPixels / kQuad;

// z of a tile: the pixels from `first` of the chunk on, channels from co on.
template <class T, int V, int CO>
__device__ Outputs<T> product(const Single<T>& a, const Chunk& chunk, int first, int co, T* shared) {
  using P = Places<T, CO>;
  Outputs<T> z = {};
  for (int c = 0; c < a.Ci; c += P::slice) {
    const int left = a.Ci - c < P::slice ? a.Ci - c : P::slice;
    __syncthreads();  // the slice before, and the tile of z before, are still read
    load_weights<T, V, CO>(a, c, left, co, shared);
    __syncthreads();
    depthwise<T, V, CO>(a, chunk, first, c, left, shared);
    __syncthreads();
    const T *t = shared + own_pixel<CO>() * P::pitch, *w = shared + P::weights + own_channel<CO>();
    for (int k = 0; k < left; k += V) {
      Pack<T, V> in[kQuad];
#pragma unroll
      for (int u = 0; u < kQuad; ++u) in[u] = Pack<T, V>::load(t + u * kApart * P::pitch + k);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto weight = Quad<T>::load(w + (k + v) * P::co_pitch);
#pragma unroll
        for (int u = 0; u < kQuad; ++u) {
#pragma unroll
          for (int i = 0; i < kQuad; ++i) z.pixel[u].v[i] = fused(in[u].v[v], weight.v[i], z.pixel[u].v[i]);
        }
      }
    }
  }
  return z;
}

// f(element of this thread, where it is in memory, whether 4 channels may be moved at once and how many there are).
template <class T, int CO, class F>
__device__ void each_output(const Single<T>& a, const Chunk& chunk, int first, int co, F f) {
  const int c = co + own_channel<CO>(), left = a.Co - c < kQuad ? a.Co - c : kQuad;
#pragma unroll
  for (int u = 0; u < kQuad; ++u) {
    const int p = first + own_pixel<CO>() + u * kApart;
    const int64_t pixel = (static_cast<int64_t>(chunk.n) * a.Ho + chunk.y) * a.Wo + p;
    if (p < chunk.pixels && left > 0) f(u, a.z + pixel * a.z_pitch + c, a.wide_z && left == kQuad, left);
  }
}

template <class T, int CO>
__device__ void write(const Single<T>& a, const Chunk& chunk, int first, int co, const Outputs<T>& z) {
  each_output<T, CO>(a, chunk, first, co, [&](int u, T* to, bool all, int left) {
    if (all) return z.pixel[u].store(to);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < left) to[i] = z.pixel[u].v[i];
    }
  });
}

// What this thread has written.
template <class T, int CO>
__device__ Outputs<T> read(const Single<T>& a, const Chunk& chunk, int first, int co) {
  Outputs<T> z = {};
  each_output<T, CO>(a, chunk, first, co, [&](int u, const T* from, bool all, int left) {
    if (all) z.pixel[u] = Quad<T>::load(from);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (!all && i < left) z.pixel[u].v[i] = from[i];
    }
  });
  return z;
}

// A tile of z for all threads of the block.
template <class T, int CO>
__device__ void share(const Outputs<T>& z, T* shared) {
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kQuad; ++u) {
    z.pixel[u].store(shared + (own_pixel<CO>() + u * kApart) * Places<T, CO>::co_pitch + own_channel<CO>());
  }
  __syncthreads();
}

// Two columns of the block's channels: 8 neighbouring lanes share them, each every eighth pixel.
template <class T, int CO>
struct Column {
  static constexpr int apart = CO / 2;
  T sum[2] = {0, 0};

  __device__ static int first() { return threadIdx.x / 8; }
  // sum = f(sum, z) over the tile's pixels.
  template <class F>
  __device__ void add(const T* tile, int pixels, F f) {
    for (int p = threadIdx.x % 8; p < pixels && p < kPixels; p += 8) {
#pragma unroll
      for (int j = 0; j < 2; ++j) sum[j] = f(j, sum[j], tile[p * Places<T, CO>::co_pitch + first() + j * apart]);
    }
  }
  // ((0+1)+(2+3))+((4+5)+(6+7))
  __device__ void fold() {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int other = 1; other < 8; other *= 2) sum[j] = sum[j] + __shfl_xor_sync(~0u, sum[j], other);
    }
  }
  __device__ void store(const Single<T>& a, int co, T* row) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int c = co + first() + j * apart;
      if (threadIdx.x % 8 == 0 && c < a.Co) row[c] = sum[j];
    }
  }
};

// Of a multiprocessor: with more doubles would spill.
template <class T>
constexpr int kMultiprocessorThreads = sizeof(T) == 4 ? 512 : 256;

template <class T, int V, int CO>
__global__ void __launch_bounds__(Places<T, CO>::threads, kMultiprocessorThreads<T> / Places<T, CO>::threads)
    branch_conv_kernel(const __grid_constant__ Group<Single<T>> group) {
  SHARED(T, shared);
  const Single<T>& a = group.member[blockIdx.z];
  const int columns = (a.Co + CO - 1) / CO, co = blockIdx.x % columns * CO;
  const int rows = chunk_rows(a.Wo), count = chunks(a.Ho, a.Wo);
  Chunk chunk{blockIdx.x / columns};
  if (chunk.index >= static_cast<int64_t>(a.N) * count) return;
  chunk.n = chunk.index / count, chunk.y = chunk.index % count * rows;
  chunk.pixels = (a.Ho - chunk.y < rows ? a.Ho - chunk.y : rows) * a.Wo;

  Outputs<T> z;
  Column<T, CO> mean, squares;
  for (int first = 0; first < chunk.pixels; first += kPixels) {
    z = product<T, V, CO>(a, chunk, first, co, shared);
    write<T, CO>(a, chunk, first, co, z);
    if (!a.stat.parts) continue;
    share<T, CO>(z, shared);
    mean.add(shared, chunk.pixels - first, [](int, T sum, T v) { return sum + v; });
  }
  if (!a.stat.parts) return;
  mean.fold();
  for (T& sum : mean.sum) sum = sum / static_cast<T>(chunk.pixels);
  for (int first = 0; first < chunk.pixels; first += kPixels) {
    if (chunk.pixels > kPixels) share<T, CO>(read<T, CO>(a, chunk, first, co), shared);
    squares.add(shared, chunk.pixels - first, [&](int j, T sum, T v) {
      const T d = v - mean.sum[j];
      return fused(d, d, sum);
    });
  }
  squares.fold();
  T* const part = a.stat.parts + chunk.index * 2 * a.Co;
  mean.store(a, co, part);
  squares.store(a, co, part + a.Co);
  const auto at = [&](int c) { return moments_of(a.stat, c, a.Ho, a.Wo, a.arrivals.count); };
  if (!finish(a.arrivals, chunk.index, chunk.index + 1, a.Co, at)) return;
  make_statistic(a.stat, static_cast<T>(static_cast<int64_t>(a.N) * a.Ho * a.Wo));
}

template <class T>
Single<T> single(const BranchConv<T>& a, const ConvBranch<T>& b) {
  const bool wide_z = a.Co % kWide<T> == 0 && wide<T>(b.z, b.z_pitch);
  return {a.N, a.H, a.W, a.Ci, a.Co, a.Ho, a.Wo, a.stride, b.kernel, b.dilation, a.relu, wide_z, a.x, a.norm, b.taps,
          b.pointwise, b.z, b.z_pitch, b.stat, b.arrivals};
}

template <class T>
bool wide_input(const Single<T>& a) {
  return a.Ci % kWide<T> == 0 && wide<T>(a.x.data, a.x.n, a.x.h, a.x.w) && wide<T>(a.norm) && wide<T>(a.pointwise);
}

template <class T, int V, int CO>
void launch_singles(const std::vector<const Single<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<Single<T>>& group, int count) {
    int64_t blocks = 0;
    size_t shared = 0;
    for (int k = 0; k < count; ++k) {
      const Single<T>& a = group.member[k];
      blocks = std::max(blocks, a.N * chunks(a.Ho, a.Wo) * blocks_of(a.Co, CO));
      shared = std::max(shared, Places<T, CO>::bytes(a));
    }
    launch(branch_conv_kernel<T, V, CO>, dim3(blocks, 1, count), dim3(Places<T, CO>::threads), shared, stream, group);
  });
}

template <class T, int CO>
void launch_columns(const std::vector<Single<T>*>& calls, Stream stream) {
  std::vector<const Single<T>*> aligned, others;
  for (Single<T>* call : calls) {
    call->arrivals.each = blocks_of(call->Co, CO);
    (wide_input(*call) ? aligned : others).push_back(call);
  }
  launch_singles<T, kWide<T>, CO>(aligned, stream);
  launch_singles<T, 1, CO>(others, stream);
}

}  // namespace

template <class T>
void branch_conv(const std::vector<const BranchConv<T>*>& calls, Stream stream) {
  TileCalls tiles;
  std::vector<Single<T>> all;
  for (const BranchConv<T>* call : calls) {
    for (const ConvBranch<T>& branch : call->branches) {
      if (!tiles.take(*call, branch)) all.push_back(single(*call, branch));
    }
  }
  tiles.launch(stream);
  std::vector<Single<T>*> narrow, middle, broad;
  for (Single<T>& one : all) (one.Co <= 16 ? narrow : one.Co <= 32 ? middle : broad).push_back(&one);
  launch_columns<T, 16>(narrow, stream);
  launch_columns<T, 32>(middle, stream);
  launch_columns<T, 64>(broad, stream);
}

template void branch_conv(const std::vector<const BranchConv<float>*>&, Stream);
template void branch_conv(const std::vector<const BranchConv<double>*>&, Stream);

}  // namespace dartsfast::cuda
