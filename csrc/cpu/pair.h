// Two registers as one: two chains of dependent operations, each in the other's latency. What activations.h
// and rnn_node ask of Vec; every lane computes as in Vec, so results keep their bits.
#pragma once

#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

template <class T>
struct Pair {
  using V = Vec<T>;
  static constexpr int size = 2 * V::size;
  template <class M>
  struct Masks {
    M a, b;
  };
  V a, b;
  static Pair zero() { return {V::zero(), V::zero()}; }
  static Pair set(T x) { return {V::set(x), V::set(x)}; }
  static Pair load(const T* p) { return {V::load(p), V::load(p + V::size)}; }
  void store(T* p) const { a.store(p), b.store(p + V::size); }
  Pair operator+(Pair o) const { return {a + o.a, b + o.b}; }
  Pair operator-(Pair o) const { return {a - o.a, b - o.b}; }
  Pair operator*(Pair o) const { return {a * o.a, b * o.b}; }
  Pair operator/(Pair o) const { return {a / o.a, b / o.b}; }
  static Pair fma(Pair x, Pair y, Pair z) { return {V::fma(x.a, y.a, z.a), V::fma(x.b, y.b, z.b)}; }
  static Pair fnma(Pair x, Pair y, Pair z) { return {V::fnma(x.a, y.a, z.a), V::fnma(x.b, y.b, z.b)}; }
  Pair at_least(Pair floor) const { return {a.at_least(floor.a), b.at_least(floor.b)}; }
  Pair relu() const { return {a.relu(), b.relu()}; }
  Pair where_positive(Pair x) const { return {a.where_positive(x.a), b.where_positive(x.b)}; }
  Pair minus_abs() const { return {a.minus_abs(), b.minus_abs()}; }
  Pair abs() const { return {a.abs(), b.abs()}; }
  Pair with_sign_of(Pair x) const { return {a.with_sign_of(x.a), b.with_sign_of(x.b)}; }
  Pair power_of_two() const { return {a.power_of_two(), b.power_of_two()}; }
  auto exceeds(Pair o) const { return Masks<decltype(a.exceeds(o.a))>{a.exceeds(o.a), b.exceeds(o.b)}; }
  template <class M>
  static Pair select(Masks<M> m, Pair yes, Pair no) {
    return {V::select(m.a, yes.a, no.a), V::select(m.b, yes.b, no.b)};
  }
  template <class M>
  Pair where(Masks<M> m) const {
    return {a.where(m.a), b.where(m.b)};
  }
  template <class M>
  Pair where_not(Masks<M> m) const {
    return {a.where_not(m.a), b.where_not(m.b)};
  }
};

// A Vec of the `left` channels from p on, or a Pair of as many as it holds.
template <class V, class T>
V load_channels(const T* p, int64_t left) {
  if constexpr (std::is_same_v<V, Pair<T>>) return V::load(p);
  else return load_channels(p, left);
}

template <class T>
void store_channels(const Pair<T>& v, T* p, int64_t) {
  v.store(p);
}

// As each_register, in pairs while there are two: f(c, left, V()), where V is Pair<T> or Vec<T>.
template <class T, class F>
void each_pair(int64_t C, F f) {
  int64_t c = 0;
  for (; c + Pair<T>::size <= C; c += Pair<T>::size) f(c, std::integral_constant<int64_t, Pair<T>::size>(), Pair<T>());
  each_register<T>(C - c, [&](int64_t rest, auto left) { f(c + rest, left, Vec<T>()); });
}

}  // namespace dartsfast::DARTSFAST_ISA
