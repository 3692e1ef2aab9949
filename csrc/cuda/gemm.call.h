// gemm_ on given memory of a device.
#pragma once

#include "gemm.h"
#include "section.h"

namespace dartsfast {

template <class T>
class GemmCall {
 public:
  explicit GemmCall(const Gemm<T>& args) : args_(args) {}
  GemmCall(const GemmCall&) = delete;

  Work parts() { return work<Gemm<T>, cuda::gemm<T>>(args_); }

 private:
  Gemm<T> args_;
};

}  // namespace dartsfast
