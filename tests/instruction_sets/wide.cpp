// The portable kernels with the registers of AVX-512, 32 of 64 bytes: all of its tiling, on any processor.
#define DARTSFAST_REGISTERS 32
#define DARTSFAST_REGISTER_BYTES 64
#define DARTSFAST_ISA isa_wide
#include "kernels.inc"

extern "C" const dartsfast::InstructionSet* dartsfast_instruction_set() {
  using namespace dartsfast::isa_wide;
  using dartsfast::Storage;
  static const dartsfast::ImageKernels<float> halves[2] = {half_kernels<Storage::bfloat16>(),
                                                           half_kernels<Storage::float16>()};
  static const dartsfast::InstructionSet set = {"portable-wide", table<float>(halves), table<double>()};
  return &set;
}
