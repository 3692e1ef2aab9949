// Large outputs from memory that is used again, as GPU allocators do: a search asks for the same sizes in
// every iteration, which costs a general allocator page faults and fragments it to twice what is in use.
#pragma once

#include <vector>

#include "tensors.h"

namespace dartsfast {

// An uninitialised tensor with the dtype and device of `like`.
Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes);

}  // namespace dartsfast
