// branch_conv's forward of all branches of an edge from one tile of its input: kernels of 3 and 5, dilation 1 and 2,
// stride 1, as many output as input channels. The bits are those of csrc/cuda/branch_conv.cu.
//
// A block has a few whole rows of an image, up to 4096 outputs of a branch, with all channels, and the rows around
// them, after norm and relu, in shared memory. Half of the block has the branches without dilation, half the dilated
// ones (either may be missing). A thread has 8 pixels of a row by 4 channels, for a 3x3 and a 5x5 at once: a pixel of
// the window is loaded once for all outputs of both that it reaches, so that a row of taps is 12 + 8 loads for 64 fma
// of four channels; branch by branch they were 30, tap by tap, as in the general kernel, 64. The depthwise results
// replace the window in shared memory, where the threads of a chunk read each other's channels: per 4 input channels
// 12 loads for 128 fma, 8 pixels by 4 output channels a thread. z goes to memory from registers, 16 bytes at a time,
// and through shared memory to the lanes that are the 8 interleaved sums of csrc/order.h.
//
// Places in shared memory are such that the 8 lanes that a phase of a 16-byte access serves are in 32 banks: 16 floats
// are left free after 8 pixels. What is right of a row is what is left of the next, so zeros are kept once. 128
// registers a thread, all of them used, let two blocks of 256 threads run on a multiprocessor. Only weights on their
// way into shared memory, once a block, meet in a bank: they are read from memory in rows and stored in columns.
//
// Bytes: x is read with its halo, 1.75 times in an image of 32 rows with dilation 2, 1.5 times in one of 16, once in
// one of 8, and z written once: 5.75, 5.5 and 5 images for the ideal 5 of four branches, 1.15 times as many at most;
// what is read again mostly comes from the second-level cache. Weights are read once a block, all of them from the
// caches but for the first blocks: 8 KiB a block at C = 16, 81 KiB, as much as the block's images, at C = 64.
//
// At C = 16 it is bound by memory (132 fma for 20 bytes), at C = 64 by fma (324 for 20), if loads from shared
// memory, which take about as long as the fma of the depthwise, overlap with them.
#include "branch_conv_tile.h"

#include "finish.h"
#include "group.h"
#include "stored.h"

namespace dartsfast::cuda {
namespace {

using Four = Pack<float, 4>;
constexpr int kWindow = 8;   // pixels of a thread; a group
constexpr int kRowTaps = 8;  // five of a 5x5, then three of a 3x3 in the middle rows

// Sizes of a block, in floats. HALO: of a 5x5 with the largest dilation. PAIRS: of branches of equal dilation.
template <int C, int W, int HALO, int PAIRS>
struct Tile {
  static constexpr int ROWS = 4096 / (C * W) < 8 ? 4096 / (C * W) : 8;
  static constexpr int INPUT_ROWS = ROWS + 2 * HALO, WIDTH = W + HALO, PIXELS = ROWS * W, CHUNKS = PIXELS / 64;
  static constexpr int PITCH = WIDTH * C + W / 8 * 16, WINDOW = INPUT_ROWS * PITCH + HALO * C;
  static constexpr int WARPS = C / 16;             // of a chunk
  static constexpr int SLAB = 8 * (8 * 16 + 16);   // a warp's z
  static constexpr int T = 64 * C + 8 * 18;        // depthwise results of a chunk
  static constexpr int CHUNK = WARPS * SLAB > T ? WARPS * SLAB : T;
  static constexpr int FIRST = WINDOW > PAIRS * CHUNKS * CHUNK ? WINDOW : PAIRS * CHUNKS * CHUNK;
  static constexpr int LINE = C + 4;  // of taps and weights, whose neighbours in memory go to other lines
  static constexpr int PAIR_TAPS = 5 * kRowTaps * LINE, SLICE = C < 64 ? C : 16;  // input channels of staged weights
  static constexpr int WEIGHTS = FIRST + PAIRS * PAIR_TAPS, BYTES = (WEIGHTS + PAIRS * SLICE * LINE) * 4;
  static constexpr int PAIR_THREADS = PIXELS * C / 32, THREADS = PAIRS * PAIR_THREADS;
  static constexpr int BLOCKS = 512 / THREADS;  // of a multiprocessor: 128 registers a thread

  __device__ static unsigned place(unsigned x) { return x * C + x / 8 * 16; }  // of a column of the window
  // Of a group of 8 pixels in depthwise results: 16 floats from its even neighbour, for stores of 8 lanes, and 8 groups
  // in 8 different sets of 4 banks, for loads of 4 channels of one pixel each.
  __device__ static unsigned group(unsigned g) { return g * (8 * C + 18) - g % 2 * 2; }
};

__device__ inline void fma_each(const Four& a, const Four& b, Four& sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.v[i] = fmaf(a.v[i], b.v[i], sum.v[i]);
}

// A block's rows of the input with what is around them.
template <class S, int C, int W, int HALO>
__device__ __forceinline__ void load_window(const TileCall& a, Storage as, int n, int y0, float* window) {
  const int c = threadIdx.x % (C / 4) * 4;
  Four mean{}, rstd{};
  if (a.norm) mean = Four::load(a.norm + c), rstd = Four::load(a.norm + C + c);
#pragma unroll 4
  for (int i = threadIdx.x / (C / 4); i < S::INPUT_ROWS * S::WIDTH + HALO; i += S::THREADS / (C / 4)) {
    const int row = i / S::WIDTH, column = i % S::WIDTH, y = y0 + row - HALO, x = column - HALO;
    auto v = Four::zero();
    if (y >= 0 && y < a.H && x >= 0 && row < S::INPUT_ROWS) {
      v = read<float, 4>(a.x.data, as, a.x.at(n, y, x, c));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (a.norm) v.v[k] = (v.v[k] - mean.v[k]) * rstd.v[k];
        if (a.relu) v.v[k] = v.v[k] < 0 ? 0.f : v.v[k];
      }
    }
    v.store(window + row * S::PITCH + S::place(column) + c);
  }
}

// Taps of the pairs, [pair][row][kRowTaps][LINE].
template <class S, int C, int FIRST, int PAIRS>
__device__ void load_taps(const TileCall& a, float* taps) {
#pragma unroll
  for (int b = 0; b < 2 * PAIRS; ++b) {
    const int K = b % 2 ? 5 : 3, first = b % 2 ? 0 : kRowTaps + 5;
    if (!(a.there & TileCall::bit(FIRST + b / 2, b % 2))) continue;
    const float* const from = a.branch(FIRST + b / 2, b % 2).taps;
    for (int i = threadIdx.x; i < C * K * K; i += S::THREADS) {
      const int c = i / (K * K), tap = i % (K * K);
      taps[b / 2 * S::PAIR_TAPS + (first + tap / K * kRowTaps + tap % K) * S::LINE + c] = from[i];
    }
  }
}

// SLICE input channels from c on of the pairs' product weights, [pair][SLICE][LINE]; four lanes have 16 of a row.
template <class S, int C, int FIRST, int PAIRS>
__device__ void load_weights(const TileCall& a, int half, int c, float* weights) {
#pragma unroll 1
  for (int pair = 0; pair < PAIRS; ++pair) {
    if (!(a.there & TileCall::bit(FIRST + pair, half))) continue;
    const float* const from = a.branch(FIRST + pair, half).pointwise + c;
#pragma unroll 1
    for (int i = threadIdx.x; i < S::SLICE / 4 * C; i += S::THREADS) {
      const int k = i / (4 * C) * 16 + i % 4 * 4, o = i / 4 % C;
      const auto w = Four::load(from + o * C + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[(pair * S::SLICE + k + j) * S::LINE + o] = w.v[j];
    }
  }
}

// Row `row` of a 5x5's window, for it and for a 3x3. `line` is where the row starts in a window that begins FROM pixels
// before.
template <int C, int LINE, int D, int FROM, bool THREE, bool FIVE>
__device__ __forceinline__ void depthwise_row(int row, const float* line, const float* taps, Four (&t)[2][kWindow]) {
  const bool three = THREE && row > 0 && row < 4;
  Four w5[5], w3[3];
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    if (FIVE) w5[k] = Four::load(taps + k * LINE);
    if (three && k < 3) w3[k] = Four::load(taps + (5 + k) * LINE);
  }
  // A pixel goes to all outputs that it reaches; an output's taps still come from left to right.
#pragma unroll
  for (int i = FIVE ? 0 : D; i < kWindow + (FIVE ? 4 : 3) * D; ++i) {
    const int j = FROM + i;
    const auto v = Four::load(line + j * C + j / 8 * 16);
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      const int u5 = i - k * D, u3 = i - (k + 1) * D;
      if (FIVE && u5 >= 0 && u5 < kWindow) fma_each(v, w5[k], t[1][u5]);
      if (three && k < 3 && u3 >= 0 && u3 < kWindow) fma_each(v, w3[k], t[0][u3]);
    }
  }
}

// Both kernels of dilation D, or one of them. `line` is where the first pixel's window starts, HALO pixels to its left.
// All unrolled: places are constants, for which there is no register to spare.
template <class S, int C, int HALO, int D, bool THREE, bool FIVE>
__device__ void depthwise(const float* line, const float* taps, Four (&t)[2][kWindow]) {
#pragma unroll
  for (int row = FIVE ? 0 : 1; row < (FIVE ? 5 : 4); ++row) {
    const float* const at = line + (row - 2) * D * S::PITCH;
    depthwise_row<C, S::LINE, D, HALO - 2 * D, THREE, FIVE>(row, at, taps + row * kRowTaps * S::LINE, t);
  }
}

template <class S, int C, int HALO, int D>
__device__ void depthwise(uint32_t there, const float* window, const float* taps, Four (&t)[2][kWindow]) {
  const bool three = there & TileCall::bit(D, 0), five = there & TileCall::bit(D, 1);
  if (three && five) return depthwise<S, C, HALO, D, true, true>(window, taps, t);
  if (three) return depthwise<S, C, HALO, D, true, false>(window, taps, t);
  if (five) depthwise<S, C, HALO, D, false, true>(window, taps, t);
}

// z += what SLICE input channels of t, at `t` 8 pixels of them, give.
template <class S, int C>
__device__ void product(const float* t, const float* weights, Four (&z)[kWindow]) {
#pragma unroll 1
  for (int c = 0; c < S::SLICE; c += 4) {
    Four w[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) w[k] = Four::load(weights + (c + k) * S::LINE);
#pragma unroll
    for (int u = 0; u < kWindow; ++u) {
      const auto v = Four::load(t + u * C + c);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) z[u].v[i] = fmaf(v.v[k], w[k].v[i], z[u].v[i]);
      }
    }
  }
}

// ((0+1)+(2+3))+((4+5)+(6+7)) over bits 2, 3, 4 of the lane.
__device__ inline void fold(Four& sum) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int other = 4; other < 32; other *= 2) sum.v[k] = sum.v[k] + __shfl_xor_sync(~0u, sum.v[k], other);
  }
}

// The moments of a warp's chunk by 16 channels; the lane's are 8 neighbouring pixels, number `lane / 4`.
template <int C>
__device__ void moments(const Four (&z)[kWindow], float* slab, float* part) {
  const int lane = threadIdx.x % 32, group = lane / 4, q = lane % 4 * 4;
  constexpr int apart = 8 * 16 + 16;
#pragma unroll
  for (int u = 0; u < kWindow; ++u) z[u].store(slab + group * apart + u * 16 + q);
  __syncwarp();
  Four pixel[8], mean{}, squares{};
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    pixel[g] = Four::load(slab + g * apart + group * 16 + q);
#pragma unroll
    for (int k = 0; k < 4; ++k) mean.v[k] = mean.v[k] + pixel[g].v[k];
  }
  fold(mean);
#pragma unroll
  for (int k = 0; k < 4; ++k) mean.v[k] = mean.v[k] / 64.f;
#pragma unroll
  for (int g = 0; g < 8; ++g) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float d = pixel[g].v[k] - mean.v[k];
      squares.v[k] = fmaf(d, d, squares.v[k]);
    }
  }
  fold(squares);
  if (group == 0) mean.store_out(part + q), squares.store_out(part + C + q);
}

// What a thread of a block has: 8 pixels of a tile, group `group` of its chunk, and 4 channels from q on, in part
// `part` of 16.
template <class S, int C>
struct Thread {
  unsigned pair, chunk, part, group, q, pixel;
  __device__ Thread() {
    const unsigned warp = threadIdx.x % S::PAIR_THREADS / 32;
    pair = S::THREADS == S::PAIR_THREADS ? 0 : threadIdx.x / S::PAIR_THREADS;
    chunk = warp / S::WARPS, part = warp % S::WARPS, group = threadIdx.x % 32 / 4;
    q = part * 16 + threadIdx.x % 4 * 4, pixel = chunk * 64 + group * kWindow;
  }
};

// The statistics of all branches.
template <class S, int C, int W>
__device__ void finish_tile(const TileCall& a) {
  const auto at = [&](int i) { return moments_of(a.branches[i / C].stat, i % C, a.H, W, a.arrivals.count); };
  const int first = blockIdx.x * S::CHUNKS, count = a.count();
  if (!finish(a.arrivals, first, first + S::CHUNKS, count * C, at)) return;
  for (int b = 0; b < count; ++b) make_statistic(a.branches[b].stat, static_cast<float>(int64_t{a.N} * a.H * W));
}

// FIRST: the dilation of the first pair.
template <int C, int W, int FIRST, int PAIRS, bool HALVES>
__global__ void __launch_bounds__(Tile<C, W, 2 * (FIRST + PAIRS - 1), PAIRS>::THREADS,
                                  Tile<C, W, 2 * (FIRST + PAIRS - 1), PAIRS>::BLOCKS)
    branch_conv_tile_kernel(const __grid_constant__ PackedGroup<TileCall> group) {
  constexpr int HALO = 2 * (FIRST + PAIRS - 1);
  using S = Tile<C, W, HALO, PAIRS>;
  SHARED(float, shared);
  const TileCall& a = group.member(blockIdx.z);
  const int tiles = a.H / S::ROWS, n = blockIdx.x / tiles, y0 = blockIdx.x % tiles * S::ROWS;
  if (n >= a.N) return;
  if constexpr (HALVES) {
    by_storage<HALVES>(a.x.storage, [&](Storage as) { load_window<S, C, W, HALO>(a, as, n, y0, shared); });
  } else {
    load_window<S, C, W, HALO>(a, Storage::own, n, y0, shared);  // from a lambda registers would be spilled
  }
  load_taps<S, C, FIRST, PAIRS>(a, shared + S::FIRST);
  __syncthreads();

  const Thread<S, C> own;
  const unsigned y = own.pixel / W, x = own.pixel % W;
  const float* const window = shared + (y + HALO) * S::PITCH + S::place(x) + own.q;
  const float* const taps = shared + S::FIRST + own.pair * S::PAIR_TAPS + own.q;
  Four t[2][kWindow] = {};
  if (own.pair == 0) depthwise<S, C, HALO, FIRST>(a.there, window, taps, t);
  else depthwise<S, C, HALO, FIRST + PAIRS - 1>(a.there, window, taps, t);

  float* const tile = shared + (own.pair * S::CHUNKS + own.chunk) * S::CHUNK;
  float* const group_t = tile + S::group(own.group);
  float* const weights = shared + S::WEIGHTS;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool here = a.there & TileCall::bit(FIRST + own.pair, half);
    if (!(a.there & (TileCall::bit(FIRST, half) | TileCall::bit(FIRST + PAIRS - 1, half)))) continue;
    Four z[kWindow] = {};
    __syncthreads();  // the window, or the half before, is read
#pragma unroll
    for (int u = 0; u < kWindow; ++u) t[half][u].store(group_t + u * C + own.q);
#pragma unroll 1
    for (int c = 0; c < C; c += S::SLICE) {
      if (c > 0) __syncthreads();  // the slice before is read
      load_weights<S, C, FIRST, PAIRS>(a, half, c, weights);
      __syncthreads();
      if (here) product<S, C>(group_t + c, weights + own.pair * S::SLICE * S::LINE + own.q, z);
    }
    __syncthreads();
    if (!here) continue;
    const TileBranch& b = a.branch(FIRST + own.pair, half);
    by_storage<HALVES>(b.z_storage, [&](Storage as) {
#pragma unroll
      for (int u = 0; u < kWindow; ++u) {
        z[u] = rounded(z[u], as);
        write(z[u], b.z, as, (static_cast<int64_t>(blockIdx.x) * S::PIXELS + own.pixel + u) * b.z_pitch + own.q);
      }
    });
    const int64_t index = static_cast<int64_t>(blockIdx.x) * S::CHUNKS + own.chunk;
    if (b.stat.parts) moments<C>(z, tile + own.part * S::SLAB, b.stat.parts + index * 2 * C + own.part * 16);
  }
  finish_tile<S, C, W>(a);
}

// Whether a call's branches, or a kernel's, are of dilation 1, and of 2.
struct Dilations {
  bool one, two;
  bool operator==(const Dilations&) const = default;
};
Dilations dilations(const TileCall& a) { return {(a.there & 3) != 0, (a.there & 12) != 0}; }

// Whether any of a call's images is stored in 16 bits.
bool halved(const TileCall& a) {
  const auto in_halves = [](const TileBranch& b) { return b.z_storage != Storage::own; };
  return a.x.storage != Storage::own || std::any_of(a.branches, a.branches + a.count(), in_halves);
}

template <int C, int W, int FIRST, int PAIRS, bool HALVES>
void launch_tiles(const std::vector<const TileCall*>& calls, Stream stream) {
  using S = Tile<C, W, 2 * (FIRST + PAIRS - 1), PAIRS>;
  static_assert(S::BYTES <= 99 << 10);
  each_packed_group(calls, [&](const PackedGroup<TileCall>& group, size_t first, int count) {
    int64_t blocks = 0;
    for (int k = 0; k < count; ++k) {
      const TileCall& a = *calls[first + k];
      blocks = std::max<int64_t>(blocks, static_cast<int64_t>(a.N) * (a.H / S::ROWS));
    }
    const auto kernel = branch_conv_tile_kernel<C, W, FIRST, PAIRS, HALVES>;
    launch(kernel, dim3(blocks, 1, count), dim3(S::THREADS), S::BYTES, stream, group);
  });
}

// The kernels that there are.
struct Kernel {
  int C, W, rows;
  bool halves;
  Dilations dilations;
  void (*launch)(const std::vector<const TileCall*>& calls, Stream stream);
};
template <int C, int W, int FIRST, int PAIRS, bool HALVES>
constexpr Kernel kernel() {
  constexpr int rows = Tile<C, W, 2, 1>::ROWS;
  return {C, W, rows, HALVES, {FIRST == 1, FIRST + PAIRS == 3}, launch_tiles<C, W, FIRST, PAIRS, HALVES>};
}
constexpr Kernel kKernels[] = {
    kernel<16, 32, 1, 2, false>(), kernel<16, 32, 1, 1, false>(), kernel<16, 32, 2, 1, false>(),
    kernel<32, 16, 1, 2, false>(), kernel<32, 16, 1, 1, false>(), kernel<32, 16, 2, 1, false>(),
    kernel<64, 8, 1, 2, false>(),  kernel<64, 8, 1, 1, false>(),  kernel<64, 8, 2, 1, false>(),
    kernel<16, 32, 1, 2, true>(),  kernel<16, 32, 1, 1, true>(),  kernel<16, 32, 2, 1, true>(),
    kernel<32, 16, 1, 2, true>(),  kernel<32, 16, 1, 1, true>(),  kernel<32, 16, 2, 1, true>(),
    kernel<64, 8, 1, 2, true>(),   kernel<64, 8, 1, 1, true>(),   kernel<64, 8, 2, 1, true>(),
};

}  // namespace

bool TileCalls::take(const BranchConv<float>& call, const ConvBranch<float>& b) {
  const bool fits = std::any_of(std::begin(kKernels), std::end(kKernels), [&](const Kernel& kernel) {
    return kernel.C == call.Ci && kernel.W == call.W && call.H % kernel.rows == 0;
  });
  const bool usual = b.taps && (b.kernel == 3 || b.kernel == 5) && (b.dilation == 1 || b.dilation == 2);
  if (!fits || !usual || call.stride != 1 || call.Co != call.Ci) return false;
  if (!wide<4, float>(call.x) || !wide<float>(call.norm) || !wide<float>(b.pointwise)) return false;
  if (!wide<4, float>(b.z, b.z_storage, b.z_pitch) || !wide<float>(b.stat.parts)) return false;
  const int half = b.kernel / 2 - 1;
  const uint32_t bit = TileCall::bit(b.dilation, half);
  if (calls_.empty() || calls_.back().of != &call || calls_.back().call.there & bit) {
    calls_.push_back({&call, {call.N, call.H, call.relu, call.x, call.norm, 0, {}, {}}});
  }
  TileCall& tile = calls_.back().call;
  if (b.stat.parts) tile.arrivals = b.arrivals;
  tile.add(b.dilation, half, {b.taps, b.pointwise, b.z, b.z_pitch, b.z_storage, b.stat});
  return true;
}

void TileCalls::launch(Stream stream) const {
  for (const Kernel& kernel : kKernels) {
    std::vector<const TileCall*> calls;
    for (const Sized& one : calls_) {
      const bool its = one.of->Ci == kernel.C && one.of->W == kernel.W && dilations(one.call) == kernel.dilations;
      if (its && halved(one.call) == kernel.halves) calls.push_back(&one.call);
    }
    kernel.launch(calls, stream);
  }
}

}  // namespace dartsfast::cuda
