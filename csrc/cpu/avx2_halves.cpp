// Kernels of images in 16 bits, with AVX2, FMA and F16C.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define DARTSFAST_ISA isa_avx2
#define DARTSFAST_AVX2
#include "halves.inc"

namespace dartsfast {
const ImageKernels<float> avx2_halves[2] = {isa_avx2::half_kernels<Storage::bfloat16>(),
                                            isa_avx2::half_kernels<Storage::float16>()};
}
#endif
