// mixed_sum: all branches of a node in one pass, and the sums that its backward needs in another. Both are bound by
// memory: they read every z once, 16 bytes at a time where rows are aligned to them.
//
// Forward: a thread has a few channels of PIXELS pixels, far enough apart that neighbouring threads read neighbouring
// memory; mean, rstd and weight are loaded once for all of them, and their z are in flight together. Where z are stored
// in 16 bits it is 8 channels of half as many pixels. With one pixel a
// thread, loads of mean and rstd from the first-level cache would be twice those of z.
// Backward: a warp has a chunk of 64 pixels or more: lane 0 to 7 of four groups take every eighth pixel, as the
// interleaved sums of csrc/order.h do, so that folding them is three shuffles. Chunks are added up in a second launch.
#include "mixed_sum.h"

#include "group.h"
#include "pack.h"
#include "stored.h"
#include "tree.h"
#include "../order.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kBranches = 60;
template <int V>
constexpr int kPixels = V > 4 ? 2 : 4;
constexpr int kFew = 4;  // branches of a call that shares a launch with others: the gradients of skips, a cell's inputs

// Some of a call's branches, at most MOST, on top of base.
template <class T, int MOST>
struct Some {
  int32_t N, HW, C, branches;
  Pixels<const T> base;
  Pixels<T> out;
  SummedBranch<T> branch[MOST];
};

template <class P>
__device__ int64_t place(const P& image, int64_t pixel, int32_t HW) {
  return pixel / HW * image.n + pixel % HW * image.pitch;
}

template <class T, int V, int MOST, bool HALVES>
__global__ void __launch_bounds__(kThreads) mixed_sum_kernel(const __grid_constant__ Group<Some<T, MOST>> group) {
  const Some<T, MOST>& a = group.member[blockIdx.z];
  constexpr int PIXELS = kPixels<V>;
  const int groups = a.C / V;
  const int64_t pixels = static_cast<int64_t>(a.N) * a.HW, apart = (pixels + PIXELS - 1) / PIXELS;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, first = i / groups;
  const int c = i % groups * V;
  if (first >= apart) return;
  Pack<T, V> sum[PIXELS];
#pragma unroll
  for (int k = 0; k < PIXELS; ++k) {
    const int64_t p = first + k * apart;
    const bool there = a.base.data && p < pixels;
    sum[k] = there ? read_own<V>(a.base.data + place(a.base, p, a.HW) + c) : Pack<T, V>::zero();
  }
#pragma unroll 2
  for (int b = 0; b < a.branches; ++b) {
    const SummedBranch<T>& branch = a.branch[b];
    const auto mean = read_own<V>(branch.mean + c), rstd = read_own<V>(branch.rstd + c);
    const T w = *branch.weight;
    by_storage<HALVES>(branch.z.storage, [&](Storage as) {
      Pack<T, V> z[PIXELS];
#pragma unroll
      for (int k = 0; k < PIXELS; ++k) {
        const int64_t p = first + k * apart;
        z[k] = p < pixels ? read<T, V>(branch.z.data, as, place(branch.z, p, a.HW) + c) : Pack<T, V>::zero();
      }
#pragma unroll
      for (int k = 0; k < PIXELS; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[k].v[v] = fused(w, (z[k].v[v] - mean.v[v]) * rstd.v[v], sum[k].v[v]);
      }
    });
  }
#pragma unroll
  for (int k = 0; k < PIXELS; ++k) {
    const int64_t p = first + k * apart;
    if (p < pixels) write_own(sum[k], a.out.data + place(a.out, p, a.HW) + c);
  }
}

// Whether V channels of each branch can be moved at once.
template <int V, class T, class B>
bool whole(const std::vector<B>& branches) {
  return std::all_of(branches.begin(), branches.end(), [](const B& b) {
    return wide<V, T>(b.z.data, b.z.storage, b.z.n, b.z.pitch) && wide<T>(b.mean) && wide<T>(b.rstd);
  });
}
template <int V, class T>
bool whole(const MixedSum<T>& a) {
  const bool base = !a.base.data || wide<T>(a.base.data, a.base.n, a.base.pitch);
  return a.C % V == 0 && wide<T>(a.out.data, a.out.n, a.out.pitch) && base && whole<V, T>(a.branches);
}

// Whether any branch is stored in 16 bits.
template <class B>
bool halved(const std::vector<B>& branches) {
  return std::any_of(branches.begin(), branches.end(), [](const B& b) { return b.z.storage != Storage::own; });
}

// Some of a call's branches, and g, which comes before the first.
template <class T>
struct SomeSums {
  int32_t N, H, W, C, branches;
  Pixels<const T> g;
  T* sums;  // of what comes first
  bool with_g;
  GradientBranch<T> branch[kBranches];
};

// A warp's chunk: 8 lanes a group of channels, 4 groups.
template <class T, int V, bool HALVES>
__global__ void __launch_bounds__(kThreads) mixed_sum_backward_kernel(const __grid_constant__ SomeSums<T> a) {
  const int lane = threadIdx.x % 32, interleave = lane % 8, group = lane / 8;
  const int64_t rows = chunk_rows(a.W), count = chunks(a.H, a.W), chunk = blockIdx.x;
  const int64_t n = chunk / count, y = chunk % count * rows;
  const int pixels = static_cast<int>((y + rows <= a.H ? rows : a.H - y) * a.W);
  const T* const g = a.g.data + n * a.g.n + y * a.W * a.g.pitch;
  const int outputs = a.branches + (a.with_g ? 1 : 0), blocks = (a.C + 4 * V - 1) / (4 * V);
  for (int task = threadIdx.x / 32; task < outputs * blocks; task += kThreads / 32) {
    const int output = task / blocks, b = a.with_g ? output - 1 : output, c = (task % blocks * 4 + group) * V;
    const bool here = c < a.C;
    Pack<T, V> sum = Pack<T, V>::zero();
    if (here && b < 0) {
#pragma unroll 4
      for (int p = interleave; p < pixels; p += 8) {
        const auto x = read_own<V>(g + p * a.g.pitch + c);
#pragma unroll
        for (int v = 0; v < V; ++v) sum.v[v] = sum.v[v] + x.v[v];
      }
    } else if (here) {
      const GradientBranch<T>& branch = a.branch[b];
      const int64_t z = n * branch.z.n + y * a.W * branch.z.pitch + c;
      const auto mean = read_own<V>(branch.mean + c), rstd = read_own<V>(branch.rstd + c);
      by_storage<HALVES>(branch.z.storage, [&](Storage as) {
#pragma unroll(V > 4 ? 2 : 4)
        for (int p = interleave; p < pixels; p += 8) {
          const auto x = read_own<V>(g + p * a.g.pitch + c);
          const auto s = read<T, V>(branch.z.data, as, z + p * branch.z.pitch);
#pragma unroll
          for (int v = 0; v < V; ++v) sum.v[v] = fused(x.v[v], (s.v[v] - mean.v[v]) * rstd.v[v], sum.v[v]);
        }
      });
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int other = 1; other < 8; other *= 2) sum.v[v] = sum.v[v] + __shfl_xor_sync(~0u, sum.v[v], other);
    }
    if (here && interleave == 0) write_own(sum, a.sums + (output * (a.N * count) + chunk) * a.C + c);
  }
}

template <int V, class T>
bool whole(const MixedSumBackward<T>& a) {
  return a.C % V == 0 && wide<T>(a.g.data, a.g.n, a.g.pitch) && whole<V, T>(a.branches);
}

template <class T>
auto backward_kernel(const MixedSumBackward<T>& a) {
  if constexpr (kServesHalves<T>) {
    if (halved(a.branches)) {
      return whole<kWideHalves>(a) ? mixed_sum_backward_kernel<T, kWideHalves, true> : mixed_sum_backward_kernel<T, 1, true>;
    }
  }
  return whole<kWide<T>>(a) ? mixed_sum_backward_kernel<T, kWide<T>, false> : mixed_sum_backward_kernel<T, 1, false>;
}

// Where the sums of some outputs of a call go: the mean over `pixels`, and the sum over channels.
template <class T>
struct Totals {
  int32_t count, C;
  T pixels;
  T* sums;
  struct {
    T *mean, *weight;
  } to[kBranches];
};

template <class T>
__global__ void __launch_bounds__(kThreads) mixed_sum_finish_kernel(const __grid_constant__ Totals<T> a) {
  const auto to = a.to[blockIdx.x];
  if (!to.mean && !to.weight) return;
  T* const row = a.sums + static_cast<int64_t>(blockIdx.x) * a.count * a.C;
  const int columns = a.C < 32 ? a.C : 32, lanes = kThreads / columns, lane = threadIdx.x / columns;
  for (int first = 0; first < a.C; first += columns) {
    const int c = first + threadIdx.x % columns;
    const bool here = c < a.C && lane < lanes;
    tree(Sums<T>{row + c, a.C}, here, a.count, lane, lanes);
    if (here && lane == 0 && to.mean) to.mean[c] = row[c] / a.pixels;
  }
  __syncthreads();
  if (!to.weight) return;
  tree(Sums<T>{row, 1}, true, a.C, threadIdx.x, kThreads);
  if (threadIdx.x == 0) *to.weight = row[0];
}

}  // namespace

namespace {

// The calls in launches of MOST branches, those that come later on top of what was there.
template <class T, int V, int MOST, bool HALVES>
void launch_sums(const std::vector<const MixedSum<T>*>& calls, Stream stream) {
  size_t most = 0;
  for (const MixedSum<T>* call : calls) most = std::max(most, call->branches.size());
  for (size_t first = 0; first < most; first += MOST) {
    std::vector<Some<T, MOST>> all;
    for (const MixedSum<T>* call : calls) {
      if (first >= call->branches.size()) continue;
      Some<T, MOST> some{call->N, call->HW, call->C, 0, call->base, call->out, {}};
      if (first) some.base = {some.out.data, some.out.n, some.out.pitch};
      some.branches = static_cast<int32_t>(std::min<size_t>(call->branches.size() - first, MOST));
      std::copy_n(call->branches.begin() + first, some.branches, some.branch);
      all.push_back(some);
    }
    std::vector<const Some<T, MOST>*> members;
    for (const auto& some : all) members.push_back(&some);
    each_group(members, [=](const Group<Some<T, MOST>>& group, int count) {
      int64_t blocks = 0;
      for (int i = 0; i < count; ++i) {
        const auto& a = group.member[i];
        const int64_t threads = blocks_of(static_cast<int64_t>(a.N) * a.HW, kPixels<V>) * (a.C / V);
        blocks = std::max(blocks, blocks_of(threads, kThreads));
      }
      launch(mixed_sum_kernel<T, V, MOST, HALVES>, dim3(blocks, 1, count), dim3(kThreads), 0, stream, group);
    });
  }
}

template <class T, int V, int MOST, bool HALVES>
void launch_aligned(const std::vector<const MixedSum<T>*>& calls, Stream stream) {
  const auto [aligned, others] = parted(calls, [](const auto& call) { return whole<V>(call); });
  launch_sums<T, 1, MOST, HALVES>(others, stream);
  launch_sums<T, V, MOST, HALVES>(aligned, stream);
}

template <class T, int MOST>
void launch_stored(const std::vector<const MixedSum<T>*>& calls, Stream stream) {
  const auto [halves, own] = parted(calls, [](const auto& call) { return halved(call.branches); });
  launch_aligned<T, kWide<T>, MOST, false>(own, stream);
  if constexpr (kServesHalves<T>) launch_aligned<T, kWideHalves, MOST, true>(halves, stream);
}

}  // namespace

template <class T>
void mixed_sum(const std::vector<const MixedSum<T>*>& calls, Stream stream) {
  const auto [many, few] = parted(calls, [](const auto& call) { return call.branches.size() > kFew; });
  launch_stored<T, kFew>(few, stream);
  launch_stored<T, kBranches>(many, stream);
}

template <class T>
void mixed_sum_backward(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream) {
  for (const MixedSumBackward<T>* call : calls) {
    const int64_t count = call->N * chunks(call->H, call->W);
    const auto kernel = backward_kernel(*call);
    SomeSums<T> some{call->N, call->H, call->W, call->C, 0, call->g, call->sums, true, {}};
    for (size_t first = 0; first < call->branches.size(); first += kBranches) {
      some.branches = static_cast<int32_t>(std::min<size_t>(call->branches.size() - first, kBranches));
      std::copy_n(call->branches.begin() + first, some.branches, some.branch);
      launch(kernel, dim3(count), dim3(kThreads), 0, stream, some);
      some.sums += (some.branches + (some.with_g ? 1 : 0)) * count * call->C;
      some.with_g = false;
    }
  }
}

template <class T>
void mixed_sum_finish(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream) {
  for (const MixedSumBackward<T>* call : calls) {
    const int64_t count = call->N * chunks(call->H, call->W), outputs = 1 + static_cast<int64_t>(call->branches.size());
    Totals<T> totals{static_cast<int32_t>(count), call->C, static_cast<T>(static_cast<int64_t>(call->N) * call->H * call->W),
                     call->sums, {}};
    for (int64_t first = 0; first < outputs; first += kBranches, totals.sums += kBranches * count * call->C) {
      const int64_t some = std::min<int64_t>(outputs - first, kBranches);
      for (int64_t i = 0; i < some; ++i) {
        totals.to[i] = {call->g_mean, nullptr};
        if (first + i == 0) continue;
        const GradientBranch<T>& branch = call->branches[first + i - 1];
        totals.to[i] = {branch.g_zhat_mean, branch.weight};
      }
      launch(mixed_sum_finish_kernel<T>, dim3(some), dim3(kThreads), 0, stream, totals);
    }
  }
}

template void mixed_sum(const std::vector<const MixedSum<float>*>&, Stream);
template void mixed_sum(const std::vector<const MixedSum<double>*>&, Stream);
template void mixed_sum_backward(const std::vector<const MixedSumBackward<float>*>&, Stream);
template void mixed_sum_backward(const std::vector<const MixedSumBackward<double>*>&, Stream);
template void mixed_sum_finish(const std::vector<const MixedSumBackward<float>*>&, Stream);
template void mixed_sum_finish(const std::vector<const MixedSumBackward<double>*>&, Stream);

}  // namespace dartsfast::cuda
