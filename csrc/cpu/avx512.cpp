// The kernels with AVX-512. The whole file is compiled for it, so nothing here may be inlined elsewhere:
// no headers of the standard library with code in them.
#if defined(__x86_64__)
#pragma GCC target("avx512f,fma")
// The compiler's own header of AVX-512 warns of itself.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define DARTSFAST_ISA isa_avx512
#define DARTSFAST_AVX512
#include "kernels.inc"

namespace dartsfast {
const InstructionSet avx512 = {"avx512", isa_avx512::table<float>(avx512_halves), isa_avx512::table<double>()};
}
#endif
