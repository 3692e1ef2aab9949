// Moments of images: a block has 32 channels of one image batch and goes down the tree of its chunks, eight leaves a
// thread. What counts is that all batches of a section share a launch: each is a few thousand numbers, in the
// second-level cache since they were just written.
#include "moments.h"

#include "../order.h"
#include "group.h"
#include "tree.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kColumns = 32;

template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(const __grid_constant__ Group<ChunkMoments<T>> group) {
  const ChunkMoments<T>& a = group.member[blockIdx.z];
  const int first = blockIdx.x * kColumns;
  if (first >= a.C) return;
  const int32_t count = chunks(a.H, a.W), rows = chunk_rows(a.W);
  const int columns = a.C - first < kColumns ? a.C - first : kColumns, lanes = kThreads / columns;
  const int c = first + threadIdx.x % columns, lane = threadIdx.x / columns;
  const Moments<T> column{a.parts + c, 2 * static_cast<int64_t>(a.C), a.C, {a.H, a.W, rows, count}, a.N * count};
  tree(column, lane < lanes, a.N * count, lane, lanes);
  if (lane != 0) return;
  if (a.mean) a.mean[c] = a.parts[c];
  if (a.variance) a.variance[c] = a.parts[a.C + c] / static_cast<T>(static_cast<int64_t>(a.N) * a.H * a.W);
}

}  // namespace

template <class T>
void moments(const std::vector<const ChunkMoments<T>*>& calls, Stream stream) {
  each_group(calls, [=](const Group<ChunkMoments<T>>& group, int count) {
    int32_t C = 0;
    for (int k = 0; k < count; ++k) C = std::max(C, group.member[k].C);
    launch(moments_kernel<T>, dim3(blocks_of(C, kColumns), 1, count), dim3(kThreads), 0, stream, group);
  });
}

template void moments(const std::vector<const ChunkMoments<float>*>&, Stream);
template void moments(const std::vector<const ChunkMoments<double>*>&, Stream);

}  // namespace dartsfast::cuda
