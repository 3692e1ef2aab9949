// Memory as the kernels' callers see it: views without ownership. Torch-free, so that what is on an arena and what is
// in a tensor are the same to them.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "order.h"
#include "storage.h"

namespace dartsfast {

// A view of memory that somebody else keeps; strides in elements. Null data: none.
struct Array {
  void* data = nullptr;
  int64_t dim = 0, size[5] = {}, stride[5] = {};
  Storage storage = Storage::own;
};

// Dense memory of these sizes.
inline Array dense_array(const void* data, std::initializer_list<int64_t> sizes) {
  Array a{const_cast<void*>(data), static_cast<int64_t>(sizes.size())};
  int64_t i = 0, stride = 1;
  for (int64_t size : sizes) a.size[i++] = size;
  for (i = a.dim - 1; i >= 0; stride *= a.size[i--]) a.stride[i] = stride;
  return a;
}

// An image batch [N, H, W, C] with adjacent channels.
template <class T>
Image<T> image(const Array& a) {
  // The stride of a dimension of size 1 says nothing: where rows are one pixel, they are the pixels' pitch.
  return {static_cast<T*>(a.data), a.stride[0], a.stride[1], a.stride[a.size[2] == 1 ? 1 : 2]};
}

// The same where it may be stored in 16 bits.
inline StoredImage stored_image(const Array& a) {
  const Image<void> i = image<void>(a);
  return {i.data, i.n, i.h, i.w, a.storage};
}

// Where mean and biased variance [C] of an image are written; null: nowhere.
template <class T>
struct Moments {
  T *mean = nullptr, *variance = nullptr;
};

}  // namespace dartsfast
