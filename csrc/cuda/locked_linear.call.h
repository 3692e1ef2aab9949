// locked_linear_ and its gradients on given memory of a device.
#pragma once

#include "locked_linear.h"
#include "device_memory.h"
#include "section.h"

namespace dartsfast {

template <class T, void (*LAUNCH)(const std::vector<const cuda::Locked<T>*>&, Stream)>
class LockedCall {
 public:
  explicit LockedCall(const LockedLinear<T>& args)
      : memory_(args.batch * (args.features + 1)),
        args_{args, memory_.get(), memory_.get() + args.batch * args.features} {}
  LockedCall(const LockedCall&) = delete;

  Work parts() { return work<cuda::Locked<T>, LAUNCH>(args_); }

 private:
  Memory<int32_t> memory_;
  cuda::Locked<T> args_;
};

template <class T>
using LockedLinearCall = LockedCall<T, cuda::locked_linear<T>>;
template <class T>
using LockedInputGradientCall = LockedCall<T, cuda::locked_input_gradient<T>>;
template <class T>
using LockedWeightGradientCall = LockedCall<T, cuda::locked_weight_gradient<T>>;

}  // namespace dartsfast
