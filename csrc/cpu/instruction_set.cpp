// Chooses the instruction set at run time.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "kernels.h"
#include "../ops/tensors.h"

namespace dartsfast {
namespace {

// Those of this processor, the widest first; then what a test has added.
std::vector<const InstructionSet*>& available() {
  static std::vector<const InstructionSet*> sets = [] {
    std::vector<const InstructionSet*> found;
#if defined(__x86_64__)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (has_avx2 && __builtin_cpu_supports("avx512f")) found.push_back(&avx512);
    if (has_avx2) found.push_back(&avx2);
#endif
    found.push_back(&portable);
    return found;
  }();
  return sets;
}

const InstructionSet*& chosen() {
  static const InstructionSet* set = available().front();
  return set;
}

std::string names(const char* between) {
  std::string all;
  for (const InstructionSet* set : available()) all += (all.empty() ? "" : between) + std::string(set->name);
  return all;
}

std::string cpu_instruction_set() { return chosen()->name; }

std::string cpu_instruction_sets() { return names(" "); }

void set_cpu_instruction_set(const std::string& name) {
  for (const InstructionSet* set : available()) {
    if (name == set->name) {
      chosen() = set;
      return;
    }
  }
  check(false, "instruction set '", name, "' is not one of this processor's: ", names(", "));
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen(); }

// Kernels that a test compiled with other registers, or with emulated instructions, from now on one to choose.
extern "C" __attribute__((visibility("default"))) void dartsfast_add_instruction_set(const InstructionSet* set) {
  available().push_back(set);
}

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("cpu_instruction_sets", TORCH_BOX(&cpu_instruction_sets));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&set_cpu_instruction_set));
}

}  // namespace dartsfast
