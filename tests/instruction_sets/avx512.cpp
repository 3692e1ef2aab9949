// The kernels of csrc/cpu/avx512.cpp with their intrinsics emulated.
#define DARTSFAST_INTRINSICS "simde.h"
#define DARTSFAST_ISA isa_avx512_emulated
#define DARTSFAST_AVX512
#include "kernels.inc"

extern "C" const dartsfast::InstructionSet* dartsfast_instruction_set() {
  using namespace dartsfast::isa_avx512_emulated;
  static const dartsfast::InstructionSet set = {"avx512-emulated", table<float>(), table<double>()};
  return &set;
}
