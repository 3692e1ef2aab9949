// alpha_softmax on given memory. A few hundred elements: no kernel needed.
#pragma once

#include <vector>

#include "../alpha_softmax.h"
#include "section.h"

namespace dartsfast {

template <class T>
class AlphaSoftmaxCall {
 public:
  explicit AlphaSoftmaxCall(const std::vector<SoftmaxRows<T>>& tensors) : tensors_(tensors) {}
  AlphaSoftmaxCall(const AlphaSoftmaxCall&) = delete;

  Work tensors() {
    return {static_cast<int64_t>(tensors_.size()), 20 * tensors_[0].rows * tensors_[0].K, [this](int64_t i, bool) {
              for (int64_t r = 0; r < tensors_[i].rows; ++r) softmax_row(tensors_[i], r);
            }};
  }

 private:
  std::vector<SoftmaxRows<T>> tensors_;
};

}  // namespace dartsfast
