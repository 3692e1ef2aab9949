// Kernels of images in 16 bits, for any processor.
#define DARTSFAST_ISA isa_portable
#include "halves.inc"

namespace dartsfast {
const ImageKernels<float> portable_halves[2] = {isa_portable::half_kernels<Storage::bfloat16>(),
                                                isa_portable::half_kernels<Storage::float16>()};
}
