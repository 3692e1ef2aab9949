// pool3x3 on given memory of a device: what the operator and whoever else runs it share. A call must outlive the
// sections that its work runs in.
#pragma once

#include <vector>

#include "../pool3x3.h"
#include "device_memory.h"
#include "moments.h"
#include "pool3x3.h"
#include "section.h"

namespace dartsfast {

template <class T>
cuda::PoolSize<T> pool_size(const Array& x, int64_t stride) {
  const auto out = [stride](int64_t size) { return static_cast<int32_t>((size - 1) / stride + 1); };
  const int32_t N = x.size[0], H = x.size[1], W = x.size[2], C = x.size[3];
  return {N, H, W, C, out(H), out(W), static_cast<int32_t>(stride), stored_image(x)};
}

// z [N, Ho, Wo, C] and the moments of both are written; x is an image with adjacent channels.
template <class T>
class Pool3x3Call {
 public:
  Pool3x3Call(const Array& x, int64_t stride, const Both<Array>& z, const Both<Moments<T>>& stats)
      : args_{pool_size<T>(x, stride), {z[0].data, z[1].data}, z[0].storage, {}} {
    const cuda::PoolSize<T>& a = args_.size;
    const int64_t part = a.N * chunks(a.Ho, a.Wo) * 2 * a.C;
    parts_ = Memory<T>(2 * part);
    for (int half = 0; half < 2; ++half) {
      args_.parts[half] = parts_.get() + half * part;
      moments_.push_back({a.N, a.Ho, a.Wo, a.C, args_.parts[half], stats[half].mean, stats[half].variance});
    }
  }
  Pool3x3Call(const Pool3x3Call&) = delete;

  Work images() { return work<cuda::Pool3x3<T>, cuda::pool3x3<T>>(args_); }
  Work finish() { return work<cuda::ChunkMoments<T>, cuda::merge_moments<T>>(moments_); }

 private:
  cuda::Pool3x3<T> args_;
  Memory<T> parts_;
  std::vector<cuda::ChunkMoments<T>> moments_;
};

template <class T>
class Pool3x3BackwardCall {
 public:
  Pool3x3BackwardCall(const Array& x, int64_t stride, const Pool3x3Gradients<T>& out) : args_{pool_size<T>(x, stride)} {
    args_.dx = image<T>(out.dx), args_.base = image<const T>(out.base);
    for (int half = 0; half < 2; ++half) {
      args_.g[half] = image<const T>(out.g[half]), args_.z[half] = image<const T>(out.z[half]);
      args_.coef[half] = out.coef[half];
    }
  }
  Pool3x3BackwardCall(const Pool3x3BackwardCall&) = delete;

  Work images() { return work<cuda::Pool3x3Backward<T>, cuda::pool3x3_backward<T>>(args_); }

 private:
  cuda::Pool3x3Backward<T> args_;
};

}  // namespace dartsfast
