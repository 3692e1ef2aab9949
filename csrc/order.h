// The order of every reduction over pixels, the same on all backends:
// an image is cut into chunks of whole rows; within a chunk 8 interleaved partial sums (pixel mod 8) are
// folded ((0+1)+(2+3))+((4+5)+(6+7)); chunks, image after image, are combined pairwise, neighbours first.
#pragma once

#include <cstdint>

// What CPU and device both run.
#if defined(__CUDACC__)
#define DARTSFAST_BOTH __host__ __device__
#else
#define DARTSFAST_BOTH
#endif

namespace dartsfast {

constexpr int64_t kInterleave = 8;
constexpr int64_t kChunkPixels = 64;

DARTSFAST_BOTH inline int64_t chunk_rows(int64_t width) { return width >= kChunkPixels ? 1 : kChunkPixels / width; }
DARTSFAST_BOTH inline int64_t chunks(int64_t height, int64_t width) {
  const int64_t rows = chunk_rows(width);
  return (height + rows - 1) / rows;
}
// Channels of packed arrays and scratch memory: whole registers of every instruction set.
inline int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

// An image batch [N, H, W, C] with unit channel stride; n, h, w are strides in elements.
template <class T>
struct Image {
  T* data;
  int64_t n, h, w;
  DARTSFAST_BOTH T* at(int64_t image, int64_t y) const { return data + image * n + y * h; }
};

}  // namespace dartsfast
