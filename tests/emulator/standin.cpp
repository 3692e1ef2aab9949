// What the extension offers beside operators, where kernels for CUDA are emulated in its place.
#include <string>

#include "cache.h"

namespace dartsfast {
namespace {

std::string name() { return "cuda-emulated"; }

void set_name(const std::string& wanted) { check(wanted == name(), "only ", name(), " is there"); }

void empty_cache() {}

Tensor checked_empty(const Tensor& like, const std::vector<int64_t>& sizes) { return empty(like, sizes); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&name));
  m.impl("cpu_instruction_sets", TORCH_BOX(&name));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&set_name));
  m.impl("empty_cache", TORCH_BOX(&empty_cache));
}

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) { m.impl("empty", TORCH_BOX(&checked_empty)); }

}  // namespace dartsfast
