// Memory of torch's allocator on the current device: freed at the end of a scope, it is used again by what follows on
// the stream.
#pragma once

#include "../ops/tensors.h"
#include "runtime.h"

namespace dartsfast {

Stream current_stream();

// Uninitialised bytes on the current device.
Tensor bytes(int64_t count);

template <class T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t n) : tensor_(bytes(n * sizeof(T))) {}
  T* get() const { return static_cast<T*>(tensor_.mutable_data_ptr()); }

 private:
  Tensor tensor_;
};

}  // namespace dartsfast
