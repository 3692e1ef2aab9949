// cross_entropy_ on given memory of a device.
#pragma once

#include "cross_entropy.h"
#include "device_memory.h"
#include "section.h"

namespace dartsfast {

// Rows [R, V] become their gradients; losses [R] are written. Labels are not looked at here: that of a row whose label
// is no class becomes NaN.
template <class T>
class CrossEntropyCall {
 public:
  CrossEntropyCall(const CrossEntropy<T>& args, int64_t R, T* rows, const int64_t* labels, T* losses)
      : found_(R), args_{args, R, rows, labels, found_.get(), losses} {}
  CrossEntropyCall(const CrossEntropyCall&) = delete;

  Work rows() { return work<cuda::CrossEntropyRows<T>, cuda::cross_entropy<T>>(args_); }

 private:
  Memory<RowLoss<T>> found_;
  cuda::CrossEntropyRows<T> args_;
};

}  // namespace dartsfast
