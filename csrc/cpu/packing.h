// Memory that the CPU's kernels are given: packing, and scratch memory of threads.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "../array.h"

namespace dartsfast {

// Memory on cache lines, so that no register's load or store straddles two.
struct Release {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Memory = std::unique_ptr<T[], Release>;

template <class T>
Memory<T> memory(int64_t n) {
  const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
  Memory<T> p(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
  if (!p) throw std::bad_alloc();
  return p;
}

// Dense rows of `columns`, to [rows, columns'] with zeros beyond; TRANSPOSED: [columns, rows'].
template <class T, bool TRANSPOSED = false>
Memory<T> packed(const T* data, int64_t rows, int64_t columns) {
  const int64_t R = TRANSPOSED ? columns : rows, C = TRANSPOSED ? rows : columns;
  Memory<T> out = memory<T>(R * padded(C));
  T* row = out.get();
  for (int64_t r = 0; r < R; ++r, row += padded(C)) {
    for (int64_t c = 0; c < C; ++c) row[c] = data[TRANSPOSED ? c * columns + r : r * columns + c];
    std::memset(row + C, 0, (padded(C) - C) * sizeof(T));
  }
  return out;
}

// The same of a dense array of any shape.
template <class T, bool TRANSPOSED = false>
Memory<T> packed(const Array& a, int64_t columns) {
  int64_t count = 1;
  for (int64_t i = 0; i < a.dim; ++i) count *= a.size[i];
  return packed<T, TRANSPOSED>(static_cast<const T*>(a.data), count / columns, columns);
}

// Rows of `columns` that lie apart, to [rows, columns'] with zeros beyond.
template <class T, class Rows>
Memory<T> packed_rows(const Rows& rows, int64_t columns) {
  const int64_t width = padded(columns);
  Memory<T> out = memory<T>(static_cast<int64_t>(rows.size()) * width);
  T* to = out.get();
  for (const T* row : rows) {
    std::memcpy(to, row, columns * sizeof(T));
    std::memset(to + columns, 0, (width - columns) * sizeof(T));
    to += width;
  }
  return out;
}

// Scratch memory of this thread, as the last call left it.
template <class T>
T* scratch(int64_t n) {
  thread_local Memory<T> kept;
  thread_local int64_t size = 0;
  if (n > size) {
    kept.reset();
    size = 0;
    kept = memory<T>(n);
    size = n;
  }
  return kept.get();
}

}  // namespace dartsfast
