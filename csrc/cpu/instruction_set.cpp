// Chooses the instruction set at run time.
#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels.h"
#include "tensors.h"

namespace dartsfast {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const InstructionSet*& chosen() {
  static const InstructionSet* set = has_avx2() ? &avx2 : &portable;
  return set;
}

std::string cpu_instruction_set() { return chosen()->name; }

void set_cpu_instruction_set(const std::string& name) {
  check(name == "portable" || (name == "avx2" && has_avx2()), "instruction set '", name,
        "' is not one of this processor's: ", has_avx2() ? "avx2, portable" : "portable");
  chosen() = name == "avx2" ? &avx2 : &portable;
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen(); }

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&set_cpu_instruction_set));
}

}  // namespace dartsfast
