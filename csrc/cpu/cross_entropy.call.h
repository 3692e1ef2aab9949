// cross_entropy_ on given memory.
#pragma once

#include <cmath>

#include "../ops/tensors.h"
#include "kernels.h"
#include "section.h"

namespace dartsfast {

// Rows [R, V] become their gradients; losses [R] are written. Throws where a label [R] is no class.
template <class T>
class CrossEntropyCall {
 public:
  CrossEntropyCall(const CrossEntropy<T>& args, int64_t R, T* rows, const int64_t* labels, T* losses)
      : args_(args), R_(R), rows_(rows), labels_(labels), losses_(losses) {
    for (int64_t i = 0; i < R; ++i) {
      check(labels[i] >= 0 && labels[i] < args.V, "labels must be from 0 to ", args.V - 1, ", got ", labels[i]);
    }
  }
  CrossEntropyCall(const CrossEntropyCall&) = delete;

  Work rows() {
    return {R_, args_.V * 30, [this](int64_t i, bool) {
              const RowLoss<T> found = kernels<T>().cross_entropy_row(args_, rows_ + i * args_.V, labels_[i]);
              losses_[i] = static_cast<T>(std::log(static_cast<double>(found.sum))) - found.label;
            }};
  }

 private:
  CrossEntropy<T> args_;
  int64_t R_;
  T* rows_;
  const int64_t* labels_;
  T* losses_;
};

}  // namespace dartsfast
