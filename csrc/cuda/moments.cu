// Moments of chunks merged by the tree of csrc/order.h in a launch of their own, for rnn_node. A block has eight
// neighbouring channels, a sector of memory in float32, and 32 threads a channel; the chunks, 1/32 of the pixels and
// twice the numbers, are read once, so what bounds it is the latency of a few levels of the tree.
#include "moments.h"

#include "group.h"
#include "tree.h"
#include "../order.h"

namespace dartsfast::cuda {
namespace {

constexpr int kColumns = 8, kLanes = 32, kThreads = kColumns * kLanes;

template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(const __grid_constant__ Group<ChunkMoments<T>> group) {
  const ChunkMoments<T>& a = group.member[blockIdx.z];
  const int first = blockIdx.x * kColumns, c = first + threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  if (first >= a.C) return;
  const Chunks image{a.H, a.W, static_cast<int32_t>(chunk_rows(a.W)), static_cast<int32_t>(chunks(a.H, a.W))};
  const int all = a.N * image.count;
  T* const column = a.parts + c;
  tree(Moments<T>{column, 2 * a.C, a.C, image, all}, c < a.C, all, lane, kLanes);
  if (c >= a.C || lane != 0) return;
  if (a.mean) a.mean[c] = column[0];
  if (a.variance) a.variance[c] = column[a.C] / static_cast<T>(static_cast<int64_t>(a.N) * a.H * a.W);
}

}  // namespace

template <class T>
void merge_moments(const std::vector<const ChunkMoments<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<ChunkMoments<T>>& group, int count) {
    int64_t blocks = 0;
    for (int k = 0; k < count; ++k) blocks = std::max(blocks, blocks_of(group.member[k].C, kColumns));
    launch(moments_kernel<T>, dim3(blocks, 1, count), dim3(kThreads), 0, stream, group);
  });
}

template void merge_moments(const std::vector<const ChunkMoments<float>*>&, Stream);
template void merge_moments(const std::vector<const ChunkMoments<double>*>&, Stream);

}  // namespace dartsfast::cuda
