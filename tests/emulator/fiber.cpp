// ucontext asks the system for the signal mask at each switch, which takes most of a microsecond; on x86-64 a switch is
// written out: registers that a call preserves, and the stack.
#include "fiber.h"

#include <cstdint>

namespace emulator {

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

void Fiber::prepare(char*, char* top, void (*entry)()) {
  // As emulator_switch leaves a stack: six registers, where to return, and an odd word, for the alignment of a call.
  void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 8;
  for (int i = 0; i < 8; ++i) stack[i] = nullptr;
  stack[6] = reinterpret_cast<void*>(entry);
  stack_ = stack;
}

void Fiber::switch_to(Fiber& other) { emulator_switch(&stack_, other.stack_); }

#else

void Fiber::prepare(char* bottom, char* top, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = static_cast<size_t>(top - bottom);
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::switch_to(Fiber& other) { swapcontext(&context_, &other.context_); }

#endif

}  // namespace emulator
