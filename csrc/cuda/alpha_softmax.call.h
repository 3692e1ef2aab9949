// alpha_softmax on given memory of a device.
#pragma once

#include <vector>

#include "alpha_softmax.h"
#include "section.h"

namespace dartsfast {

template <class T>
class AlphaSoftmaxCall {
 public:
  explicit AlphaSoftmaxCall(const std::vector<SoftmaxRows<T>>& tensors) : tensors_(tensors) {}
  AlphaSoftmaxCall(const AlphaSoftmaxCall&) = delete;

  Work tensors() { return work<SoftmaxRows<T>, cuda::alpha_softmax<T>>(tensors_); }

 private:
  std::vector<SoftmaxRows<T>> tensors_;
};

}  // namespace dartsfast
