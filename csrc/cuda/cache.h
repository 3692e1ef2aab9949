// Tensors and workspaces: torch's allocator keeps what is given back.
#pragma once

#include <optional>
#include <vector>

#include "device_memory.h"

namespace dartsfast {

// An uninitialised tensor on the device of `like`, of its dtype unless another is given.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, std::optional<ScalarType> dtype = {}) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// Uninitialised memory for as long as a call runs.
class Workspace {
 public:
  explicit Workspace(size_t size) : memory_(size) {}
  char* data() const { return memory_.get(); }

 private:
  Memory<char> memory_;
};

}  // namespace dartsfast
