// CUDA C++ on the CPU, for .cu files that no CUDA compiler sees: a fiber a CUDA thread, all on one thread of the CPU,
// block after block, so that a run is the same every time. What is here is what CUDA C++ supplies to a kernel; what
// would differ from a GPU in bits (rsqrtf, __expf, ...) is not.
//
// Where the code was compiled with -fsanitize=thread,bounds every access to memory is checked, too: checks.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Static memory stands for static shared memory, since blocks run one after the other. A kernel can reach no other
// static memory, so what it reaches is checked as shared. The alignment leaves gaps, in which an access is out of
// bounds.
#define __shared__ static __attribute__((aligned(1024)))

namespace emulator {

// Where the running thread stands.
struct Position {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Position position;

}  // namespace emulator

inline constexpr uint3 &threadIdx = emulator::position.thread, &blockIdx = emulator::position.block;
inline constexpr dim3 &blockDim = emulator::position.threads, &gridDim = emulator::position.blocks;
constexpr int warpSize = 32;

namespace emulator {

using Where = std::source_location;

// `kernel` for each thread of the grid, with copies of the arguments. Throws std::runtime_error where the launch is not
// valid, and for what was found in it, unless findings are collected (emulator_collect).
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A&&... args);

// Dynamic shared memory of the block, on 128 bytes.
void* dynamic_shared();

// Memory that kernels of checked code may use from now on; what overlaps it is forgotten. Without any nothing is
// checked.
void memory(const void* pointer, size_t bytes, const char* name, bool initialised);
void forget_memory();

// The rest is called by what stands below.
void run(void (*thread)(void*), void* closure, size_t closure_bytes, const void* kernel, dim3 grid, dim3 block,
         size_t shared);
int lane();
void block_barrier(Where where);
enum class Warp { sync, shuffle, vote };
// Waits for the lanes of `mask` and returns the value of lane `source`; of a vote, a bit a lane.
uint64_t exchange(Warp operation, unsigned mask, uint64_t value, int source, Where where);
void fence();
void atomic(void* pointer, size_t bytes);
void device_memory(const void* pointer, Where where);

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A&&... args) {
  struct Closure {
    void (*kernel)(P...);
    std::tuple<P...> args;
  } closure{kernel, std::tuple<P...>(std::forward<A>(args)...)};
  const auto thread = [](void* c) { std::apply(static_cast<Closure*>(c)->kernel, static_cast<Closure*>(c)->args); };
  run(thread, &closure, sizeof closure, reinterpret_cast<const void*>(kernel), grid, block, shared);
}

// The lane of the own segment of `width` lanes that an offset leads to, or the own one where it leads out.
inline int within(int source, int width) {
  return source >= 0 && source < 32 && source / width == lane() / width ? source : lane();
}

template <class T>
T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles are of 4 or 8 bytes");
  static_assert(std::is_arithmetic_v<T>, "shuffles are of numbers");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(Warp::shuffle, mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

// ---------------------------------------------------------------------------------------------- synchronisation
#define EMULATOR_WHERE emulator::Where where = emulator::Where::current()

inline void __syncthreads(EMULATOR_WHERE) { emulator::block_barrier(where); }
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_WHERE) {
  emulator::exchange(emulator::Warp::sync, mask, 0, emulator::lane(), where);
}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle(mask, value, emulator::lane() / width * width + (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_WHERE) {
  // Lanes of earlier segments can be read.
  const int source = emulator::lane() ^ lanes;
  return emulator::shuffle(mask, value, source / width > emulator::lane() / width ? emulator::lane() : source, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle(mask, value, emulator::within(emulator::lane() - static_cast<int>(lanes), width), where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle(mask, value, emulator::within(emulator::lane() + static_cast<int>(lanes), width), where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  return static_cast<unsigned>(emulator::exchange(emulator::Warp::vote, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

#undef EMULATOR_WHERE

// --------------------------------------------------------------------------------------------------- atomics
namespace emulator {

template <class T>
constexpr bool has_atomics =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
    std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T, class Next>
__attribute__((no_sanitize("thread"))) T unchecked_update(T* p, Next next) {
  const T old = *p;
  *p = next(old);
  return old;
}
// *p = next(*p); returns what was there.
template <class T, class Next>
__forceinline__ T update(T* p, Next next) {
  static_assert(has_atomics<T>, "CUDA has no atomics of this type");
  atomic(p, sizeof(T));
  return unchecked_update(p, next);
}
template <class T>
using Same = std::type_identity_t<T>;

}  // namespace emulator

template <class T>
__forceinline__ T atomicAdd(T* p, emulator::Same<T> v) {
  return emulator::update(p, [v](T old) { return old + v; });
}
template <class T>
__forceinline__ T atomicMax(T* p, emulator::Same<T> v) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMax of integers only");
  return emulator::update(p, [v](T old) { return std::max(old, v); });
}
template <class T>
__forceinline__ T atomicMin(T* p, emulator::Same<T> v) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicMin of integers only");
  return emulator::update(p, [v](T old) { return std::min(old, v); });
}
template <class T>
__forceinline__ T atomicExch(T* p, emulator::Same<T> v) {
  return emulator::update(p, [v](T) { return v; });
}
template <class T>
__forceinline__ T atomicCAS(T* p, emulator::Same<T> compare, emulator::Same<T> v) {
  static_assert(std::is_integral_v<T>, "CUDA has atomicCAS of integers only");
  return emulator::update(p, [compare, v](T old) { return old == compare ? v : old; });
}
template <class T>
__forceinline__ T atomicOr(T* p, emulator::Same<T> v) {
  return emulator::update(p, [v](T old) { return old | v; });
}
template <class T>
__forceinline__ T atomicAnd(T* p, emulator::Same<T> v) {
  return emulator::update(p, [v](T old) { return old & v; });
}
// Counts to `most`, then from 0 again.
__forceinline__ unsigned atomicInc(unsigned* p, unsigned most) {
  return emulator::update(p, [most](unsigned old) { return old >= most ? 0 : old + 1; });
}

// ------------------------------------------------------------------------------------------ loads and stores
// They are instructions of the device's memory and of no other.
#define EMULATOR_LOAD(name)                                                     \
  template <class T>                                                            \
  __forceinline__ T name(const T* p, emulator::Where where = emulator::Where::current()) { \
    emulator::device_memory(p, where);                                          \
    return *p;                                                                  \
  }
#define EMULATOR_STORE(name)                                                    \
  template <class T>                                                            \
  __forceinline__ void name(T* p, emulator::Same<T> v, emulator::Where where = emulator::Where::current()) { \
    emulator::device_memory(p, where);                                          \
    *p = v;                                                                     \
  }

EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stcg)

#undef EMULATOR_LOAD
#undef EMULATOR_STORE

// ------------------------------------------------------------------------------------------------ arithmetic
using std::max;
using std::min;

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
