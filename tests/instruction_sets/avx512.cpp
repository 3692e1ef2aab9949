// The kernels of csrc/cpu/avx512.cpp with their intrinsics emulated.
#define DARTSFAST_INTRINSICS "simde.h"
#define DARTSFAST_ISA isa_avx512_emulated
#define DARTSFAST_AVX512
#include "kernels.inc"

extern "C" const dartsfast::InstructionSet* dartsfast_instruction_set() {
  using namespace dartsfast::isa_avx512_emulated;
  using dartsfast::Storage;
  static const dartsfast::ImageKernels<float> halves[2] = {half_kernels<Storage::bfloat16>(),
                                                           half_kernels<Storage::float16>()};
  static const dartsfast::InstructionSet set = {"avx512-emulated", table<float>(halves), table<double>()};
  return &set;
}
