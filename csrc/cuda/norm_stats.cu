// norm_stats: a few hundred numbers a norm, a block each; what counts is that all norms of a section share a launch.
#include "norm_stats.h"

#include "group.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) norm_stats_kernel(const __grid_constant__ Group<NormStats<T>> group) {
  const NormStats<T>& a = group.member[blockIdx.x];
  const int64_t seen = a.norm.batches ? *a.norm.batches + 1 : 0;
  const T share = a.norm.batches ? batch_share(a.setting, seen) : T(0);
  __syncthreads();  // every thread has read the count before one moves it
  if (a.norm.batches && threadIdx.x == 0) *a.norm.batches = seen;
  for (int64_t c = threadIdx.x; c < a.setting.C; c += kThreads) make_norm(a.setting, a.norm, c, share);
}

template <class T>
__global__ void __launch_bounds__(kThreads) coefficients_kernel(const __grid_constant__ Group<Coefficients<T>> group) {
  const Coefficients<T>& a = group.member[blockIdx.x];
  for (int64_t c = threadIdx.x; c < a.C; c += kThreads) make_coefficients(a.norm, a.C, c);
}

}  // namespace

template <class T>
void norm_stats(const std::vector<const NormStats<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<NormStats<T>>& group, int count) {
    launch(norm_stats_kernel<T>, dim3(count), dim3(kThreads), 0, stream, group);
  });
}

template <class T>
void norm_stats_backward(const std::vector<const Coefficients<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<Coefficients<T>>& group, int count) {
    launch(coefficients_kernel<T>, dim3(count), dim3(kThreads), 0, stream, group);
  });
}

template void norm_stats(const std::vector<const NormStats<float>*>&, Stream);
template void norm_stats(const std::vector<const NormStats<double>*>&, Stream);
template void norm_stats_backward(const std::vector<const Coefficients<float>*>&, Stream);
template void norm_stats_backward(const std::vector<const Coefficients<double>*>&, Stream);

}  // namespace dartsfast::cuda
