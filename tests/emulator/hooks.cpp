// The functions that code compiled with -fsanitize=thread and -fsanitize=bounds calls at every access, in the place of
// the sanitizers' own libraries.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "running.h"

using emulator::running;
using emulator::checks::Access;
using emulator::checks::access;
using emulator::checks::out_of_bounds;

extern "C" {

#define PC __builtin_return_address(0)
#define HOOKS(bytes)                                                                   \
  void __tsan_read##bytes(void* p) { access(p, bytes, Access::read, PC); }             \
  void __tsan_write##bytes(void* p) { access(p, bytes, Access::write, PC); }           \
  void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, Access::read, PC); }   \
  void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, Access::write, PC); } \
  void __tsan_volatile_read##bytes(void* p) { access(p, bytes, Access::read, PC); }    \
  void __tsan_volatile_write##bytes(void* p) { access(p, bytes, Access::write, PC); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, Access::read, PC); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, Access::write, PC); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() { emulator::checks::on(); }
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

// clang's.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  if (bytes) access(from, bytes, Access::read, PC), access(to, bytes, Access::write, PC);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  if (bytes) access(to, bytes, Access::write, PC);
  return std::memset(to, value, bytes);
}

// Code of the host, such as guards of static variables; a kernel's atomics are emulator.h's.
#define ATOMICS(bits)                                                                          \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile void* p, int) {                     \
    return __atomic_load_n(static_cast<const volatile uint##bits##_t*>(p), __ATOMIC_SEQ_CST);  \
  }                                                                                            \
  void __tsan_atomic##bits##_store(volatile void* p, uint##bits##_t v, int) {                  \
    __atomic_store_n(static_cast<volatile uint##bits##_t*>(p), v, __ATOMIC_SEQ_CST);           \
  }                                                                                            \
  uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile void* p, uint##bits##_t v, int) {    \
    return __atomic_fetch_add(static_cast<volatile uint##bits##_t*>(p), v, __ATOMIC_SEQ_CST);  \
  }                                                                                            \
  uint##bits##_t __tsan_atomic##bits##_exchange(volatile void* p, uint##bits##_t v, int) {     \
    return __atomic_exchange_n(static_cast<volatile uint##bits##_t*>(p), v, __ATOMIC_SEQ_CST); \
  }
ATOMICS(8)
ATOMICS(32)
ATOMICS(64)

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
void __ubsan_handle_out_of_bounds(SourceLocation* where, void* index) {
  const std::string what = "index " + std::to_string(static_cast<long>(reinterpret_cast<uintptr_t>(index))) +
                           " of an array, " + where->file + ":" + std::to_string(where->line);
  if (running.thread >= 0) out_of_bounds(what, PC);
  std::fprintf(stderr, "out of bounds: %s\n", what.c_str());
  std::abort();
}
}
