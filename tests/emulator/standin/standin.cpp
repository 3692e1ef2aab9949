// What the extension offers beside operators, where kernels for CUDA are emulated in its place.
#include <cstdlib>
#include <string>

#include "cache.h"
#include "checks.h"
#include "emulator.h"

extern "C" void emulator_order(int which, uint64_t seed);

namespace dartsfast {

void note(const void* data, size_t bytes, bool initialised) {
  if (!emulator::checks::are_on()) return;
  emulator::memory(data, bytes, initialised ? "a tensor" : "scratch memory", initialised);
}

namespace {

// EMULATOR_ORDER says in which order threads and blocks run.
const bool ordered = [] {
  const char* const wanted = std::getenv("EMULATOR_ORDER");
  const std::string order = wanted ? wanted : "forward";
  emulator_order(order == "reverse" ? 1 : order == "random" ? 2 : 0, 1);
  return true;
}();

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
