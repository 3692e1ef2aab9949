// Images copied and added on given memory of a device.
#pragma once

#include "../array.h"
#include "image.h"
#include "section.h"

namespace dartsfast {

// out = a, or a + b, images [N, H, W, C] with adjacent channels; out may be the memory of either.
template <class T>
class ImageCall {
 public:
  ImageCall(const Array& a, const Array& b, const Array& out)
      : args_{out.size[0], out.size[1], out.size[2], out.size[3], image<const T>(a), image<const T>(b), stored_image(out)} {}

  Work images() { return work<cuda::Images<T>, cuda::images<T>>(args_); }

 private:
  cuda::Images<T> args_;
};

// `count` zeros.
template <class T>
class ZeroCall {
 public:
  ZeroCall(void* out, int64_t count) : args_{static_cast<T*>(out), count} {}

  Work zeros() { return work<cuda::Zeros<T>, cuda::zeros<T>>(args_); }

 private:
  cuda::Zeros<T> args_;
};

}  // namespace dartsfast
