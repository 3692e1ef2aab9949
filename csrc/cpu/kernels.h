// The kernels of one instruction set, as the operators call them: one image, chunk, range or
// reduction at a time.
#pragma once

#include "../branch_conv.h"
#include "../cross_entropy.h"
#include "../fd_hvp.h"
#include "../gemm.h"
#include "../locked_linear.h"
#include "../mixed_sum.h"
#include "../pool3x3.h"
#include "../rnn_node.h"

namespace dartsfast {

// Kernels of images that are stored in one way, or in part as numbers of the arithmetic.
template <class T>
struct ImageKernels {
  // By whether x is stored as z is. `first`: the thread's first image, for which scratch memory is cleared.
  void (*branch_conv[2])(const BranchConv<T>&, int64_t image, T* scratch, bool first);
  void (*branch_conv_backward[2])(const BranchConv<T>&, int64_t image, T* scratch, bool first);
  void (*pool3x3[2])(const Pool3x3<T>&, int64_t image, T* scratch);  // by whether z is stored as x is
  void (*pool3x3_backward)(const Pool3x3<T>&, int64_t image, T* scratch);
  void (*mixed_sum)(const MixedSum<T>&, int64_t image, T* scratch);
  void (*mixed_sum_backward)(const MixedSum<T>&, int64_t image, T* scratch);
  void (*store)(const T* from, int64_t count, void* to);  // in 16 bits
};

template <class T>
struct Kernels {
  ImageKernels<T> own;
  const ImageKernels<T>* halves;  // of bfloat16 and float16; null where the arithmetic is not in float32
  const ImageKernels<T>& of(Storage storage) const {
    return storage == Storage::own ? own : halves[storage == Storage::float16];
  }
  RowLoss<T> (*cross_entropy_row)(const CrossEntropy<T>&, T* row, int64_t label);
  double (*fd_norm_chunk)(const T* v, int64_t n);
  void (*fd_perturb)(const FdPerturb<T>&, int64_t begin, int64_t end);
  void (*fd_virtual_step)(const FdVirtualStep<T>&, int64_t begin, int64_t end);
  void (*fd_quotient)(const FdQuotient<T>&, int64_t begin, int64_t end);
  void (*gemm)(const Gemm<T>&, T* scratch);
  void (*row_product)(const RowProduct<T>&, int64_t begin, int64_t end, T* scratch);
  void (*row_dots)(const RowDots<T>&, T* scratch);
  void (*rnn_node)(const RnnNode<T>&, int64_t part, T* scratch);
  void (*rnn_node_normalise)(const RnnNode<T>&, int64_t row);
  void (*rnn_node_arriving)(const RnnNode<T>&, int64_t row);
  void (*rnn_node_sums)(const RnnNode<T>&, int64_t part);
  void (*rnn_node_backward)(const RnnNode<T>&, int64_t part, T* scratch);
  void (*tree_sum)(T* rows, int64_t count, int64_t stride, int64_t width);
  void (*tree_moments)(T* part, int64_t* pixels, int64_t count, int64_t C);
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

#if defined(__x86_64__)
extern const InstructionSet avx512, avx2;
extern const ImageKernels<float> avx512_halves[2], avx2_halves[2];
#endif
extern const InstructionSet portable;  // of any processor
extern const ImageKernels<float> portable_halves[2];

// The set in use: the widest that the processor has, unless another was asked for.
const InstructionSet& instruction_set();

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels() {
  return instruction_set().f32;
}
template <>
inline const Kernels<double>& kernels() {
  return instruction_set().f64;
}

}  // namespace dartsfast
