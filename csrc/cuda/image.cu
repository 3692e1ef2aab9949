// Images copied and added, and zeros: at the rate of a copy, 16 bytes at a time where rows are aligned to them.
#include "image.h"

#include "group.h"
#include "stored.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int V, bool HALVES>
__global__ void __launch_bounds__(kThreads) images_kernel(const __grid_constant__ Group<Images<T>> group) {
  const Images<T>& a = group.member[blockIdx.z];
  const int64_t groups = a.C / V, i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t c = i % groups * V, x = i / groups % a.W, y = i / groups / a.W % a.H, n = i / groups / a.W / a.H;
  if (n >= a.N) return;
  auto v = read_own<V>(a.a.at(n, y) + x * a.a.w + c);
  if (a.b.data) {
    const auto other = read_own<V>(a.b.at(n, y) + x * a.b.w + c);
#pragma unroll
    for (int k = 0; k < V; ++k) v.v[k] = v.v[k] + other.v[k];
  }
  by_storage<HALVES>(a.out.storage, [&](Storage as) { write(v, a.out.data, as, a.out.at(n, y, x, c)); });
}

template <class T>
__global__ void __launch_bounds__(kThreads) zeros_kernel(const __grid_constant__ Group<Zeros<T>> group) {
  const Zeros<T>& a = group.member[blockIdx.z];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.count; i += gridDim.x * kThreads) {
    a.out[i] = 0;
  }
}

template <int V, class T>
bool whole(const Images<T>& a) {
  const auto good = [](const auto& x) { return !x.data || wide<T>(x.data, x.n, x.h, x.w); };
  return a.C % V == 0 && good(a.a) && good(a.b) && wide<V, T>(a.out);
}

template <class T, int V, bool HALVES>
void launch_images(const std::vector<const Images<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<Images<T>>& group, int count) {
    int64_t most = 0;
    for (int k = 0; k < count; ++k) {
      const Images<T>& a = group.member[k];
      most = std::max(most, a.N * a.H * a.W * a.C / V);
    }
    launch(images_kernel<T, V, HALVES>, dim3(blocks_of(most, kThreads), 1, count), dim3(kThreads), 0, stream, group);
  });
}

// V: of those that are aligned.
template <class T, int V, bool HALVES>
void launch_aligned(const std::vector<const Images<T>*>& calls, Stream stream) {
  const auto [aligned, others] = parted(calls, whole<V, T>);
  launch_images<T, V, HALVES>(aligned, stream);
  launch_images<T, 1, HALVES>(others, stream);
}

}  // namespace

template <class T>
void images(const std::vector<const Images<T>*>& calls, Stream stream) {
  const auto [own, halves] = parted(calls, [](const auto& call) { return call.out.storage == Storage::own; });
  launch_aligned<T, kWide<T>, false>(own, stream);
  if constexpr (kServesHalves<T>) launch_aligned<T, kWideHalves, true>(halves, stream);
}

template <class T>
void zeros(const std::vector<const Zeros<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<Zeros<T>>& group, int count) {
    launch(zeros_kernel<T>, dim3(32, 1, count), dim3(kThreads), 0, stream, group);
  });
}

template void images(const std::vector<const Images<float>*>&, Stream);
template void images(const std::vector<const Images<double>*>&, Stream);
template void zeros(const std::vector<const Zeros<float>*>&, Stream);
template void zeros(const std::vector<const Zeros<double>*>&, Stream);

}  // namespace dartsfast::cuda
