// Kernels of images in 16 bits, with AVX-512.
#if defined(__x86_64__)
#pragma GCC target("avx512f,fma")
// The compiler's own header of AVX-512 warns of itself.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define DARTSFAST_ISA isa_avx512
#define DARTSFAST_AVX512
#include "halves.inc"

namespace dartsfast {
const ImageKernels<float> avx512_halves[2] = {isa_avx512::half_kernels<Storage::bfloat16>(),
                                              isa_avx512::half_kernels<Storage::float16>()};
}
#endif
