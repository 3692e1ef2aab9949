// Images copied and added, and zeros: at the rate of a copy, 16 bytes at a time where rows are aligned to them.
#include "image.h"

#include "group.h"
#include "pack.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int V>
__global__ void __launch_bounds__(kThreads) images_kernel(const __grid_constant__ Group<Images<T>> group) {
  const Images<T>& a = group.member[blockIdx.z];
  const int64_t groups = a.C / V, i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t c = i % groups * V, x = i / groups % a.W, y = i / groups / a.W % a.H, n = i / groups / a.W / a.H;
  if (n >= a.N) return;
  auto v = Pack<T, V>::load(a.a.at(n, y) + x * a.a.w + c);
  if (a.b.data) {
    const auto other = Pack<T, V>::load(a.b.at(n, y) + x * a.b.w + c);
#pragma unroll
    for (int k = 0; k < V; ++k) v.v[k] = v.v[k] + other.v[k];
  }
  v.store(a.out.at(n, y) + x * a.out.w + c);
}

template <class T>
__global__ void __launch_bounds__(kThreads) zeros_kernel(const __grid_constant__ Group<Zeros<T>> group) {
  const Zeros<T>& a = group.member[blockIdx.z];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.count; i += gridDim.x * kThreads) {
    a.out[i] = 0;
  }
}

template <class T>
bool whole(const Images<T>& a) {
  const auto good = [](const auto& x) { return !x.data || wide<T>(x.data, x.n, x.h, x.w); };
  return a.C % kWide<T> == 0 && good(a.a) && good(a.b) && good(a.out);
}

}  // namespace

template <class T>
void images(const std::vector<const Images<T>*>& calls, Stream stream) {
  std::vector<const Images<T>*> aligned, others;
  for (const Images<T>* call : calls) (whole(*call) ? aligned : others).push_back(call);
  for (const bool all : {true, false}) {
    const int V = all ? kWide<T> : 1;
    const auto kernel = all ? images_kernel<T, kWide<T>> : images_kernel<T, 1>;
    each_group(all ? aligned : others, [=](const Group<Images<T>>& group, int count) {
      int64_t most = 0;
      for (int k = 0; k < count; ++k) {
        const Images<T>& a = group.member[k];
        most = std::max(most, a.N * a.H * a.W * a.C / V);
      }
      launch(kernel, dim3(blocks_of(most, kThreads), 1, count), dim3(kThreads), 0, stream, group);
    });
  }
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
