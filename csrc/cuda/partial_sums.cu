// What images came to, added by csrc/order.h's tree: a thread has eight of a column, 8 threads a
// column. Bound by memory, of which there is little: what counts is that all sums of a program share launches.
#include <algorithm>

#include "branch_conv_backward.h"
#include "group.h"
#include "tree.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 8, kColumns = kThreads / kLanes;

template <class T>
__global__ void __launch_bounds__(kThreads) partial_sums_kernel(const __grid_constant__ Group<PartialSums<T>> group) {
  const PartialSums<T>& a = group.member[blockIdx.z];
  const int width = a.rows * a.columns, i = blockIdx.x * kColumns + threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  if (static_cast<int>(blockIdx.x) * kColumns >= width) return;
  const Sums<T> column{a.part + i, width};
  tree(column, i < width, a.count, lane, kLanes);
  if (i < width && lane == 0) a.out[i % a.columns * a.rows + i / a.columns] = column.data[0];
}

}  // namespace

template <class T>
void add_partial_sums(const std::vector<const PartialSums<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<PartialSums<T>>& group, int count) {
    int64_t most = 0;
    for (int i = 0; i < count; ++i) most = std::max(most, int64_t{group.member[i].rows} * group.member[i].columns);
    launch(partial_sums_kernel<T>, dim3(blocks_of(most, kColumns), 1, count), dim3(kThreads), 0, stream, group);
  });
}

template void add_partial_sums(const std::vector<const PartialSums<float>*>&, Stream);
template void add_partial_sums(const std::vector<const PartialSums<double>*>&, Stream);

}  // namespace dartsfast::cuda
