// The kernels with AVX2 and FMA. The whole file is compiled for them, so nothing here may be inlined elsewhere:
// no headers of the standard library with code in them.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define DARTSFAST_ISA isa_avx2
#define DARTSFAST_AVX2
#include "kernels.inc"

namespace dartsfast {
const InstructionSet avx2 = {"avx2", isa_avx2::table<float>(avx2_halves), isa_avx2::table<double>()};
}
#endif
