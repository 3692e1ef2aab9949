// A fiber: a stack, and where its execution stands.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  // Lets the fiber begin with `entry`, which must not return, on the memory below `top`.
  void prepare(char* bottom, char* top, void (*entry)());
  // Leaves this fiber, which is running, for another.
  void switch_to(Fiber& other);

 private:
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
  void* stack_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace emulator
