// Large outputs from memory that is used again, as GPU allocators do: a search asks for the same sizes in
// every iteration, which costs a general allocator page faults and fragments it to twice what is in use.
#pragma once

#include <vector>

#include "../ops/tensors.h"

namespace dartsfast {

// An uninitialised tensor with the dtype and device of `like`.
Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes);

// Uninitialised memory for as long as a call runs, of the same blocks.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  char* data() const { return data_; }

 private:
  char* const data_;
};

}  // namespace dartsfast
