// pool3x3 on given memory of a device: what the operator and whoever else runs it share. A call must outlive the
// sections that its work runs in.
#pragma once

#include <vector>

#include "../pool3x3.h"
#include "device_memory.h"
#include "pool3x3.h"
#include "section.h"
#include "tickets.h"

namespace dartsfast {

template <class T>
cuda::PoolSize<T> pool_size(const Array& x, int64_t stride) {
  const auto out = [stride](int64_t size) { return static_cast<int32_t>((size - 1) / stride + 1); };
  const int32_t N = x.size[0], H = x.size[1], W = x.size[2], C = x.size[3];
  return {N, H, W, C, out(H), out(W), static_cast<int32_t>(stride), stored_image(x)};
}

// z [N, Ho, Wo, C] and its moments are written, of each half that has memory; x is an image with adjacent channels.
template <class T>
class Pool3x3Call {
 public:
  Pool3x3Call(const Array& x, int64_t stride, const Both<Array>& z, const Both<Moments<T>>& stats)
      : args_{pool_size<T>(x, stride), {z[0].data, z[1].data}, (z[0].data ? z[0] : z[1]).storage, {}, {}} {
    const cuda::PoolSize<T>& a = args_.size;
    const int64_t count = a.N * chunks(a.Ho, a.Wo), part = count * 2 * a.C;
    parts_ = Memory<T>(2 * part);
    const bool asked = stats[0].mean || stats[1].mean || stats[0].variance || stats[1].variance;
    if (asked) tickets_ = Tickets(cuda::tickets_of(count));
    args_.arrivals = {asked ? tickets_.take(cuda::tickets_of(count)) : nullptr, static_cast<int32_t>(count), 1};
    for (int half = 0; half < 2; ++half) {
      args_.stat[half] = {parts_.get() + half * part, stats[half].mean, stats[half].variance, a.C, 0, {}};
    }
  }
  Pool3x3Call(const Pool3x3Call&) = delete;

  // How many channels of a norm of its statistics it makes, or can make; to be asked before the section runs.
  int64_t take(const NormSetting<T>& setting, const NormToMake<T>& norm, bool really) {
    const int64_t channels = args_.stat[0].take(setting, norm, really);
    return channels ? channels : args_.stat[1].take(setting, norm, really);
  }

  Work images() { return tickets_.after(work<cuda::Pool3x3<T>, cuda::pool3x3<T>>(args_)); }
  Work finish() { return {}; }  // the last block does

 private:
  cuda::Pool3x3<T> args_;
  Memory<T> parts_;
  Tickets tickets_;
};

template <class T>
class Pool3x3BackwardCall {
 public:
  Pool3x3BackwardCall(const Array& x, int64_t stride, const Pool3x3Gradients<T>& out) : args_{pool_size<T>(x, stride)} {
    args_.dx = image<T>(out.dx), args_.base = image<const T>(out.base), args_.skip = out.skip;
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
