// alpha_softmax: a thread a row of a dozen operations, so that their sum is in the documented order. A few hundred
// numbers in all; what counts is that all tensors share a launch.
#include "alpha_softmax.h"

#include "group.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 64;

template <class T>
__global__ void __launch_bounds__(kThreads) alpha_softmax_kernel(const __grid_constant__ Group<SoftmaxRows<T>> group) {
  const SoftmaxRows<T>& a = group.member[blockIdx.z];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < a.rows) softmax_row(a, row);
}

}  // namespace

template <class T>
void alpha_softmax(const std::vector<const SoftmaxRows<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<SoftmaxRows<T>>& group, int count) {
    int64_t rows = 1;  // a tensor may have none
    for (int k = 0; k < count; ++k) rows = std::max(rows, group.member[k].rows);
    launch(alpha_softmax_kernel<T>, dim3(blocks_of(rows, kThreads), 1, count), dim3(kThreads), 0, stream, group);
  });
}

template void alpha_softmax(const std::vector<const SoftmaxRows<float>*>&, Stream);
template void alpha_softmax(const std::vector<const SoftmaxRows<double>*>&, Stream);

}  // namespace dartsfast::cuda
