// Chooses the instruction set at run time.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace dartsfast {
namespace {

// Those of this processor, the widest first.
const std::vector<const InstructionSet*>& available() {
  static const std::vector<const InstructionSet*> sets = [] {
    std::vector<const InstructionSet*> found = {&portable};
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) found.insert(found.begin(), &avx2);
    if (has_avx2 && __builtin_cpu_supports("avx512f")) found.insert(found.begin(), &avx512);
    return found;
  }();
  return sets;
}

const InstructionSet*& chosen() {
  static const InstructionSet* set = available().front();
  return set;
}

std::string cpu_instruction_set() { return chosen()->name; }

void set_cpu_instruction_set(const std::string& name) {
  std::string names;
  for (const InstructionSet* set : available()) {
    if (name == set->name) {
      chosen() = set;
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  check(false, "instruction set '", name, "' is not one of this processor's: ", names);
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen(); }

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&set_cpu_instruction_set));
}

}  // namespace dartsfast
