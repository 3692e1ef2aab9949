// mixed_sum: all branches of a node in one pass, and the sums that its backward needs in another. Both are bound by
// memory: they read every z once, 16 bytes at a time where rows are aligned to them.
//
// Forward: a thread has a few channels of PIXELS pixels, far enough apart that neighbouring threads read neighbouring
// memory; mean, rstd and weight are loaded once for all of them, and their z are in flight together. Where z are stored
// in 16 bits it is 8 channels of half as many pixels. With one pixel a
// thread, loads of mean and rstd from the first-level cache would be twice those of z.
// Backward: a warp has a chunk of 64 pixels or more: lane 0 to 7 of four groups take every eighth pixel, as the
// interleaved sums of csrc/order.h do, so that folding them is three shuffles. The last blocks add the chunks up.
#include "mixed_sum.h"

#include "finish.h"
#include "group.h"
#include "pack.h"
#include "stored.h"
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
    if (p < pixels) write_out(sum[k], a.out.data + place(a.out, p, a.HW) + c);
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

// Some of a call's branches, at most MOST, and g, which comes before the first.
template <class T, int MOST>
struct SomeSums {
  int32_t N, H, W, C, branches;
  bool with_g;
  Pixels<const T> g;
  T *g_mean, *sums;  // of what comes first
  Arrivals arrivals;
  GradientBranch<T> branch[MOST];
};

// The means, coefficients and gradients of weights once the sums [outputs, count, C] are in their places 0.
template <class T, int MOST>
__device__ void make_gradients(const SomeSums<T, MOST>& a) {
  const T pixels = static_cast<T>(static_cast<int64_t>(a.N) * a.H * a.W);
  T* const sums = a.sums + (a.with_g ? static_cast<int64_t>(a.arrivals.count) * a.C : 0);
  const auto row = [&](int b) { return sums + static_cast<int64_t>(b) * a.arrivals.count * a.C; };
  for (int c = threadIdx.x; c < (a.with_g && a.g_mean ? a.C : 0); c += kThreads) a.g_mean[c] = a.sums[c] / pixels;
  for (int i = threadIdx.x; i < a.branches * a.C; i += kThreads) {
    T* const mean = a.branch[i / a.C].g_zhat_mean;
    if (mean) mean[i % a.C] = row(i / a.C)[i % a.C] / pixels;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.branches * a.C; i += kThreads) {
    const GradientBranch<T>& b = a.branch[i / a.C];
    if (b.coef) make_coefficients<T>({a.g_mean, b.g_zhat_mean, b.mean, b.weight, b.coef, b.flows}, a.C, i % a.C);
  }
  constexpr int kLanes = 8;
  for (int first = 0; first < a.branches; first += kThreads / kLanes) {
    const int b = first + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const bool here = b < a.branches && a.branch[b].d_weight;
    tree(Sums<T>{row(b), 1}, here, a.C, lane, kLanes);
    if (here && lane == 0) *a.branch[b].d_weight = row(b)[0];
  }
}

// A warp's chunk: 8 lanes a group of channels, 4 groups.
template <class T, int V, int MOST, bool HALVES>
__global__ void __launch_bounds__(kThreads)
    mixed_sum_backward_kernel(const __grid_constant__ Group<SomeSums<T, MOST>> calls) {
  const SomeSums<T, MOST>& a = calls.member[blockIdx.z];
  const int lane = threadIdx.x % 32, interleave = lane % 8, group = lane / 8;
  const int64_t rows = chunk_rows(a.W), count = chunks(a.H, a.W), chunk = blockIdx.x;
  if (chunk >= a.arrivals.count) return;
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
    if (here && interleave == 0) write_out(sum, a.sums + (output * (a.N * count) + chunk) * a.C + c);
  }
  const auto at = [&](int i) {
    return Sums<T>{a.sums + static_cast<int64_t>(i / a.C) * a.arrivals.count * a.C + i % a.C, a.C};
  };
  if (finish(a.arrivals, chunk, chunk + 1, outputs * a.C, at)) make_gradients(a);
}

template <int V, class T>
bool whole(const MixedSumBackward<T>& a) {
  return a.C % V == 0 && wide<T>(a.g.data, a.g.n, a.g.pitch) && whole<V, T>(a.branches);
}

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

// The calls in launches of MOST branches.
template <class T, int V, int MOST, bool HALVES>
void launch_gradients(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream) {
  std::vector<SomeSums<T, MOST>> all;
  for (const MixedSumBackward<T>* call : calls) {
    const int64_t count = call->N * chunks(call->H, call->W);
    SomeSums<T, MOST> some{call->N, call->H, call->W, call->C, 0, true, call->g, call->g_mean, call->sums,
                           {call->tickets, static_cast<int32_t>(count), 1}, {}};
    for (size_t first = 0; first < call->branches.size(); first += MOST) {
      some.branches = static_cast<int32_t>(std::min<size_t>(call->branches.size() - first, MOST));
      std::copy_n(call->branches.begin() + first, some.branches, some.branch);
      all.push_back(some);
      some.sums += (some.branches + (some.with_g ? 1 : 0)) * count * call->C;
      some.with_g = false, some.arrivals.tickets += tickets_of(count);
    }
  }
  std::vector<const SomeSums<T, MOST>*> members;
  for (const auto& some : all) members.push_back(&some);
  each_group(members, [=](const Group<SomeSums<T, MOST>>& group, int count) {
    int32_t blocks = 0;
    for (int i = 0; i < count; ++i) blocks = std::max(blocks, group.member[i].arrivals.count);
    launch(mixed_sum_backward_kernel<T, V, MOST, HALVES>, dim3(blocks, 1, count), dim3(kThreads), 0, stream, group);
  });
}

template <class T, int V, int MOST, bool HALVES>
void launch_aligned(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream) {
  const auto [aligned, others] = parted(calls, [](const auto& call) { return whole<V>(call); });
  launch_gradients<T, 1, MOST, HALVES>(others, stream);
  launch_gradients<T, V, MOST, HALVES>(aligned, stream);
}

template <class T, int MOST>
void launch_stored(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream) {
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
  const auto [many, few] = parted(calls, [](const auto& call) { return call.branches.size() > kFew; });
  launch_stored<T, kFew>(few, stream);
  launch_stored<T, kGradientBranches>(many, stream);
}

template void mixed_sum(const std::vector<const MixedSum<float>*>&, Stream);
template void mixed_sum(const std::vector<const MixedSum<double>*>&, Stream);
template void mixed_sum_backward(const std::vector<const MixedSumBackward<float>*>&, Stream);
template void mixed_sum_backward(const std::vector<const MixedSumBackward<double>*>&, Stream);

}  // namespace dartsfast::cuda
