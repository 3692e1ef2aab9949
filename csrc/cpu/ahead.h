// Memory to ask for ahead of its use, a few lines at a time between blocks of arithmetic.
#pragma once

#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// Rows of images. A processor foresees no access beyond a page, and a few rows of pixels are less than one. It waits
// for some twenty lines at once: all asked for one after the other, they would hold up what arithmetic takes from the
// second cache meanwhile.
class Ahead {
 public:
  void clear() { count_ = now_ = 0; }

  // `rows` rows of C channels of image n, `width` pixels each, from row y on; WRITE: they will be written.
  template <bool WRITE = false, class T>
  void add(const Image<T>& image, int64_t n, int64_t y, int64_t rows, int64_t width, int64_t C) {
    const char* row = reinterpret_cast<const char*>(image.at(n, y));
    const int64_t pixel = image.w * sizeof(T), bytes = C * sizeof(T);
    const bool whole = image.h == width * image.w;  // pixels at one distance through all rows
    const int64_t pixels = whole ? rows * width : width;
    for (int64_t k = 0; k < (whole ? 1 : rows); ++k, row += image.h * sizeof(T)) {
      if (pixel == bytes) add({row, (pixels * bytes + kLine - 1) / kLine, kLine, WRITE});
      else for (int64_t i = 0; i < bytes; i += kLine) add({row + i, pixels, pixel, WRITE});
    }
  }

  // Asks for the next lines.
  void some() {
    for (int64_t left = kAtOnce; left > 0 && now_ < count_;) {
      Lines& lines = all_[now_];
      const int64_t count = left < lines.count ? left : lines.count;
      for (int64_t i = 0; i < count; ++i, lines.data += lines.apart) {
        lines.write ? __builtin_prefetch(lines.data, 1, 2) : __builtin_prefetch(lines.data, 0, 2);
      }
      left -= count, lines.count -= count;
      if (lines.count == 0) ++now_;
    }
  }

 private:
  struct Lines {
    const char* data;
    int64_t count, apart;
    bool write;
  };
  static constexpr int64_t kLine = 64, kMost = 64;
  static constexpr int64_t kAtOnce = kRegisters == 32 ? 20 : 8;  // blocks of half as many registers are shorter

  // What there is no room for is not asked for.
  void add(const Lines& lines) {
    if (count_ < kMost && lines.count > 0) all_[count_++] = lines;
  }

  Lines all_[kMost];
  int64_t count_ = 0, now_ = 0;
};

}  // namespace dartsfast::DARTSFAST_ISA
