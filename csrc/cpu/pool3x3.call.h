// pool3x3 on given memory: what the operator and whoever else runs it share. A call must outlive the sections that
// its work runs in.
#pragma once

#include "kernels.h"
#include "moments.h"
#include "section.h"

namespace dartsfast {

template <class T>
Pool3x3<T> pool3x3_arguments(const Array& x, int64_t stride) {
  Pool3x3<T> a{};
  a.N = x.size[0], a.H = x.size[1], a.W = x.size[2], a.C = x.size[3], a.stride = stride;
  a.Ho = (a.H - 1) / stride + 1, a.Wo = (a.W - 1) / stride + 1;
  a.x = stored_image(x);
  return a;
}

// z [N, Ho, Wo, C] and its moments are written, of each half that has memory; x is an image with adjacent channels.
template <class T>
class Pool3x3Call {
 public:
  Pool3x3Call(const Array& x, int64_t stride, const Both<Array>& z, const Both<Moments<T>>& stats)
      : args_(pool3x3_arguments<T>(x, stride)), stored_((z[0].data ? z[0] : z[1]).storage), stats_(stats) {
    for (int half = 0; half < 2; ++half) args_.z[half] = z[half].data, args_.with[half] = z[half].data;
    if (!asked()) return;
    parts_ = memory<T>(2 * part());
    args_.moments = parts_.get();
  }
  Pool3x3Call(const Pool3x3Call&) = delete;

  Work images() {
    const int64_t size = 2 * chunk_rows(args_.Wo) * args_.Wo * padded(args_.C);
    return {args_.N, args_.Ho * args_.Wo * args_.C * 20,
            [this, size, x = args_.x.storage](int64_t n, bool) {
              kernels<T>().of(x).pool3x3[stored_ == x](args_, n, scratch<T>(size));
            }};
  }

  // Whether moments are.
  bool asked() const { return stats_[0].mean || stats_[1].mean; }

  // An item for the maximum and one for the average.
  Work finish() {
    return {2, 10 * part(), [this](int64_t half, bool) {
              const Pool3x3<T>& a = args_;
              if (a.with[half]) moments<T>(a.moments + half * part(), a.N, a.Ho, a.Wo, a.C, stats_[half]);
            }};
  }

 private:
  int64_t part() const { return args_.N * chunks(args_.Ho, args_.Wo) * 2 * padded(args_.C); }

  Pool3x3<T> args_;
  Memory<T> parts_;
  Storage stored_;  // z
  Both<Moments<T>> stats_;
};

template <class T>
class Pool3x3BackwardCall {
 public:
  Pool3x3BackwardCall(const Array& x, int64_t stride, const Pool3x3Gradients<T>& out)
      : args_(pool3x3_arguments<T>(x, stride)) {
    args_.dx = image<T>(out.dx), args_.base = image<const T>(out.base), args_.skip = out.skip;
    for (int half = 0; half < 2; ++half) {
      args_.with[half] = out.with[half];
      args_.g[half] = image<const T>(out.g[half]), args_.saved[half] = image<const T>(out.z[half]);
      if (!out.coef[half]) continue;
      coef_[half] = packed<T>(out.coef[half], 4, args_.C);
      args_.coef[half] = coef_[half].get();
    }
  }
  Pool3x3BackwardCall(const Pool3x3BackwardCall&) = delete;

  Work images() {
    const int64_t size = 4 * (args_.W + 2) * padded(args_.C);
    return {args_.N, args_.Ho * args_.Wo * args_.C * 20,
            [this, size](int64_t n, bool) {
              kernels<T>().of(args_.x.storage).pool3x3_backward(args_, n, scratch<T>(size));
            }};
  }

 private:
  Pool3x3<T> args_;
  Both<Memory<T>> coef_;
};

}  // namespace dartsfast
