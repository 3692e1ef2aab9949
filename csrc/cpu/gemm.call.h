// gemm_ on given memory.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "packing.h"
#include "section.h"

namespace dartsfast {

template <class T>
class GemmCall {
 public:
  explicit GemmCall(const Gemm<T>& args) : args_(args) {
    const int64_t rows = (args.M + kRowUnit - 1) / kRowUnit, columns = (args.N + kColumnUnit - 1) / kColumnUnit;
    by_rows_ = rows >= columns;
    units_ = by_rows_ ? rows : columns, unit_ = by_rows_ ? kRowUnit : kColumnUnit;
    parts_ = worth(units_, 2 * args.K * (by_rows_ ? args.N : args.M) * unit_);
  }
  GemmCall(const GemmCall&) = delete;

  // A part packs what it needs of the other side, all of it, for itself: no more parts than threads.
  Work parts() {
    return {parts_, 2 * args_.K * args_.N * args_.M / parts_, [this](int64_t i, bool) {
              const int64_t first = units_ * i / parts_ * unit_, end = units_ * (i + 1) / parts_ * unit_;
              Gemm<T> part = args_;
              (by_rows_ ? part.M : part.N) = std::min(end, by_rows_ ? args_.M : args_.N) - first;
              (by_rows_ ? part.a : part.b) = by_rows_ ? args_.a.at(first, 0) : args_.b.at(0, first);
              part.out = by_rows_ ? args_.out.at(first, 0) : args_.out.at(0, first);
              kernels<T>().gemm(part, scratch<T>(kGemmScratch));
            }};
  }

 private:
  // Threads share the side of the result with more units: as many rows or columns as tiles have on every instruction
  // set, or by half as many columns: rather an idle register than a thread with more to do.
  static constexpr int64_t kRowUnit = 12, kColumnUnit = 16;

  Gemm<T> args_;
  bool by_rows_;
  int64_t units_, unit_, parts_;
};

}  // namespace dartsfast
