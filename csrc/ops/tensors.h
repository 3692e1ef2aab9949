// Tensors to kernel arguments: checks that keep bad input out of the kernels, and views.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../array.h"
#include "device.h"

namespace dartsfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Message>
[[noreturn]] void fail(const Message&... message) {
  std::ostringstream text;
  text << "dartsfast: ";
  (text << ... << message);
  throw std::runtime_error(text.str());
}

template <class... Message>
void check(bool good, const Message&... message) {
  if (!good) fail(message...);
}

// A tensor's shape in a message: written where a check fails, not where it is made.
struct shape {
  const Tensor& t;
};
inline std::ostream& operator<<(std::ostream& text, const shape& s) {
  text << "[";
  for (int64_t i = 0; i < s.t.dim(); ++i) text << (i ? ", " : "") << s.t.size(i);
  return text << "]";
}

inline void check_ours(const Tensor& t, const char* name) { check(is_ours(t), name, " must be a ", kDevice, " tensor"); }

// How images of a dtype are stored, and what the arithmetic on them is in.
inline Storage storage(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? Storage::bfloat16 : dtype == ScalarType::Half ? Storage::float16 : Storage::own;
}
inline ScalarType arithmetic(ScalarType dtype) { return storage(dtype) == Storage::own ? dtype : ScalarType::Float; }

inline void check_like(const Tensor& t, const Tensor& x, const char* name) {
  check_ours(t, name);
  check(t.scalar_type() == x.scalar_type(), name, " must have the dtype of the other tensors");
}

// Where tensors may be stored in several dtypes that one serves the arithmetic on.
inline void check_fits(const Tensor& t, const Tensor& x, const char* name) {
  check_ours(t, name);
  check(arithmetic(t.scalar_type()) == arithmetic(x.scalar_type()), name,
        " must have the dtype of the other tensors, or one that the same arithmetic serves");
}

// `sizes` may hold -1 for any size.
inline void check_shape(const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) {
  bool good = t.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (int64_t size : sizes) good = good && (size < 0 || t.size(i) == size), ++i;
  if (good) return;
  std::ostringstream wanted;
  for (int64_t size : sizes) wanted << (wanted.tellp() ? ", " : "") << size;
  fail(name, " must be [", wanted.str(), "], got ", shape{t});
}

inline void check_image(const Tensor& x, const char* name) {
  check_ours(x, name);
  const ScalarType dtype = arithmetic(x.scalar_type());
  check(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
        " must be float32, float64, bfloat16 or float16");
  check(x.dim() == 4, name, " must be [N, H, W, C], got ", shape{x});
  for (int64_t i = 0; i < 4; ++i) check(x.size(i) > 0, name, " must not be empty, got ", shape{x});
  // Far beyond any memory, and far enough from overflow for every size that is computed from it.
  check(1.0 * x.size(0) * x.size(1) * x.size(2) * x.size(3) < 1e12, name, " is too large: ", shape{x});
}

// The tensor itself where channels are adjacent and rows follow each other at one pitch, else a copy.
inline Tensor by_pixel(const Tensor& t) {
  const bool channels = t.stride(3) == 1 || t.size(3) == 1;
  const bool rows = t.size(1) == 1 || t.size(2) == 1 || t.stride(1) == t.size(2) * t.stride(2);
  return channels && rows ? t : torch::stable::contiguous(t);
}

// The tensor itself where channels are adjacent, else a copy.
inline Tensor by_row(const Tensor& t) {
  return t.stride(3) == 1 || t.size(3) == 1 ? t : torch::stable::contiguous(t);
}

// The tensor itself where all its elements are adjacent and in index order, else a copy.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The tensor itself where it is of this dtype, else a copy.
inline Tensor as(const Tensor& t, ScalarType dtype) { return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype); }

// The tensor itself where it is stored as the numbers of the arithmetic on it, else a copy.
inline Tensor widened(const Tensor& t) { return as(t, arithmetic(t.scalar_type())); }

// The tensor itself where it is stored as `stored` or as the arithmetic's numbers, else a copy as the latter: kernels
// know one way of 16 bits at a time.
inline Tensor readable(const Tensor& t, Storage stored) { return storage(t.scalar_type()) == stored ? t : widened(t); }

// Memory from a tensor's first to its last element.
struct Span {
  const char *begin, *end;
  explicit Span(const Tensor& t) : begin(static_cast<const char*>(t.const_data_ptr())) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    end = begin + (last + 1) * t.element_size();
  }
};

inline void noted(const Tensor& t) {
  if (t.numel() == 0) return;
  const Span all(t);
  note(all.begin, all.end - all.begin, true);
}

// Views of a tensor's memory, to read and to write.
inline Array view(void* data, const Tensor& t) {
  noted(t);
  Array a{data, t.dim()};
  for (int64_t i = 0; i < a.dim; ++i) a.size[i] = t.size(i), a.stride[i] = t.stride(i);
  a.storage = storage(t.scalar_type());
  return a;
}
inline Array array(const Tensor& t) { return view(const_cast<void*>(t.const_data_ptr()), t); }
inline Array written_array(const Tensor& t) { return view(t.mutable_data_ptr(), t); }

// Part [i] of a dense tensor, to write.
inline Array part(const Tensor& t, int64_t i) {
  Array a = written_array(t);
  a.data = static_cast<char*>(a.data) + i * a.stride[0] * t.element_size();
  --a.dim;
  for (int64_t k = 0; k < a.dim; ++k) a.size[k] = a.size[k + 1], a.stride[k] = a.stride[k + 1];
  return a;
}

template <class T>
const T* read(const Tensor& t) {
  noted(t);
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* written(const Tensor& t) {
  noted(t);
  return static_cast<T*>(t.mutable_data_ptr());
}

inline void check_apart(const Tensor& written, const char* name, std::initializer_list<const Tensor*> read) {
  const std::less_equal<const char*> before;
  for (const Tensor* t : read) {
    const Span w(written), r(*t);
    check(before(w.end, r.begin) || before(r.end, w.begin), name, " must not overlap with the other tensors");
  }
}

// Elements of a tensor of any layout, in index order.
template <class T>
std::vector<T> values(const Tensor& t) {
  const Tensor all = dense(t);
  const T* data = static_cast<const T*>(all.const_data_ptr());
  return std::vector<T>(data, data + all.numel());
}

// f(kernels' element type zero) for the dtype of x.
template <class F>
auto for_dtype(const Tensor& x, F f) {
  return x.scalar_type() == ScalarType::Double ? f(double()) : f(float());
}

}  // namespace dartsfast
