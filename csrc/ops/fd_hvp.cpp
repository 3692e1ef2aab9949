// fd_hvp; the contract is in dartsfast/ops/fd_hvp.py.
#include "fd_hvp.call.h"

#include <functional>
#include <optional>

#include "cache.h"
#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

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

// What is written may be what is read itself, but no other part of its memory: threads go through them in any order.
void check_apart(const Tensor& to, const Tensor& from, const char* name) {
  const char *w = read<char>(to), *r = read<char>(from);
  const int64_t bytes = to.size(0) * to.element_size();
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
    Tensor norm = torch::stable::new_empty(v, std::vector<int64_t>());
    FdNormCall<T> call(read<T>(v), v.size(0), written<T>(norm));
    run_section({call.parts()});
    run_section({call.finish()});
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
    FdPerturbCall<T> call(w.size(0), written<T>(w), read<T>(w0), read<T>(v), read<T>(norm), static_cast<T>(r),
                          static_cast<T>(sign));
    run_section({call.elements()});
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
    FdVirtualStepCall<T> call(w.size(0), written<T>(w), read<T>(g),
                              momentum_buffer ? read<T>(*momentum_buffer) : nullptr, read<T>(scale),
                              static_cast<T>(lr), static_cast<T>(momentum), static_cast<T>(weight_decay));
    run_section({call.elements()});
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
    FdQuotientCall<T> call(plus.size(0), written<T>(out), read<T>(plus), read<T>(minus), read<T>(norm),
                           static_cast<T>(r));
    run_section({call.elements()});
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("fd_norm", DARTSFAST_BOX(fd_norm));
  m.impl("fd_perturb_", DARTSFAST_BOX(fd_perturb));
  m.impl("fd_virtual_step_", DARTSFAST_BOX(fd_virtual_step));
  m.impl("fd_quotient", DARTSFAST_BOX(fd_quotient));
}

}  // namespace dartsfast
