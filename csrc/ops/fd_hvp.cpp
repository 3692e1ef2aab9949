// fd_hvp; the contract is in dartsfast/ops/fd_hvp.py.
#include "../fd_hvp.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "cache.h"
#include "kernels.h"
#include "packing.h"
#include "section.h"
#include "tensors.h"

namespace dartsfast {
namespace {

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T scalar(const Tensor& t) {
  return *data<T>(t);
}

void check_vector(const Tensor& v, const char* name) {
  check_ours(v, name);
  check(v.scalar_type() == ScalarType::Float || v.scalar_type() == ScalarType::Double, name,
        " must be float32 or float64");
  check(v.dim() == 1 && v.size(0) > 0 && v.is_contiguous(), name, " must be [n], contiguous, n > 0, got ", shape{v});
}

void check_vector(const Tensor& v, const Tensor& like, const char* name) {
  check_vector(v, name);
  check_like(v, like, name);
  check_shape(v, {like.size(0)}, name);
}

// `written` may be `read` itself, but no other part of its memory: threads go through them in any order.
void check_apart(const Tensor& written, const Tensor& read, const char* name) {
  const char *w = data<char>(written), *r = data<char>(read);
  const int64_t bytes = written.size(0) * written.element_size();
  const std::less_equal<const char*> before;
  check(w == r || before(w + bytes, r) || before(r + bytes, w), "w and ", name, " must not overlap");
}

void check_scalar(const Tensor& t, const Tensor& like, const char* name) {
  check_like(t, like, name);
  check_shape(t, {}, name);
}

Tensor fd_norm(const Tensor& v) {
  check_vector(v, "v");
  return for_dtype(v, [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = v.size(0), chunks = (n + kNormChunk - 1) / kNormChunk;
    const Memory<double> sums = memory<double>(chunks);
    in_parallel(chunks, kNormChunk, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t first = k * kNormChunk;
        sums[k] = kernels<T>().fd_norm_chunk(data<T>(v) + first, std::min(kNormChunk, n - first));
      }
    });
    kernels<double>().tree_sum(sums.get(), chunks, 1, 1);
    Tensor norm = torch::stable::new_empty(v, std::vector<int64_t>());
    *static_cast<T*>(norm.mutable_data_ptr()) = static_cast<T>(std::sqrt(sums[0]));
    return norm;
  });
}

void fd_perturb(const Tensor& w, const Tensor& w0, const Tensor& v, const Tensor& norm, double r, double sign) {
  check_vector(w, "w");
  check_vector(w0, w, "w0");
  check_vector(v, w, "v");
  check_scalar(norm, w, "norm");
  check_apart(w, w0, "w0");
  check_apart(w, v, "v");
  check(r > 0, "r must be positive, got ", r);
  for_dtype(w, [&](auto zero) {
    using T = decltype(zero);
    const T R = static_cast<T>(r) / scalar<T>(norm);
    T* out = static_cast<T*>(w.mutable_data_ptr());
    if (!std::isfinite(R) || R == 0) {  // nowhere to step; v may not be finite
      std::memmove(out, data<T>(w0), w.size(0) * sizeof(T));
      return;
    }
    const FdPerturb<T> a{out, data<T>(w0), data<T>(v), static_cast<T>(sign) * R};
    in_parallel(w.size(0), 1, [&](int64_t begin, int64_t end) { kernels<T>().fd_perturb(a, begin, end); });
  });
}

void fd_virtual_step(const Tensor& w, const Tensor& g, const std::optional<Tensor>& momentum_buffer,
                     const Tensor& scale, double lr, double momentum, double weight_decay) {
  check_vector(w, "w");
  check_vector(g, w, "g");
  check_scalar(scale, w, "scale");
  check_apart(w, g, "g");
  if (momentum_buffer) {
    check_vector(*momentum_buffer, w, "momentum_buffer");
    check_apart(w, *momentum_buffer, "momentum_buffer");
  }
  for_dtype(w, [&](auto zero) {
    using T = decltype(zero);
    const FdVirtualStep<T> a{static_cast<T*>(w.mutable_data_ptr()),
                             data<T>(g),
                             momentum_buffer ? data<T>(*momentum_buffer) : nullptr,
                             scalar<T>(scale),
                             static_cast<T>(lr),
                             static_cast<T>(momentum),
                             static_cast<T>(weight_decay)};
    in_parallel(w.size(0), 1, [&](int64_t begin, int64_t end) { kernels<T>().fd_virtual_step(a, begin, end); });
  });
}

Tensor fd_quotient(const Tensor& plus, const Tensor& minus, const Tensor& norm, double r) {
  check_vector(plus, "plus");
  check_vector(minus, plus, "minus");
  check_scalar(norm, plus, "norm");
  check(r > 0, "r must be positive, got ", r);
  return for_dtype(plus, [&](auto zero) {
    using T = decltype(zero);
    Tensor out = empty(plus, {plus.size(0)});
    const FdQuotient<T> a{static_cast<T*>(out.mutable_data_ptr()), data<T>(plus), data<T>(minus),
                          T(2) * (static_cast<T>(r) / scalar<T>(norm))};
    in_parallel(plus.size(0), 1, [&](int64_t begin, int64_t end) { kernels<T>().fd_quotient(a, begin, end); });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("fd_norm", TORCH_BOX(&fd_norm));
  m.impl("fd_perturb_", TORCH_BOX(&fd_perturb));
  m.impl("fd_virtual_step_", TORCH_BOX(&fd_virtual_step));
  m.impl("fd_quotient", TORCH_BOX(&fd_quotient));
}

}  // namespace dartsfast
