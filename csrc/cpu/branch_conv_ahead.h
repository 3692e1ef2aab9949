// Which rows a tile of branch_conv takes, and those that the next tile will.
#pragma once

#include "../branch_conv.h"
#include "ahead.h"
#include "stored.h"

namespace dartsfast::DARTSFAST_ISA {

// How many rows of x the output rows before `end` read, and of how many they are all that read them.
template <class T>
int64_t rows_read(const BranchConv<T>& a, int64_t P, int64_t end) {
  const int64_t rows = (end - 1) * a.stride + P + 1;
  return end == a.Ho || rows > a.H ? a.H : rows;
}
template <class T>
int64_t rows_complete(const BranchConv<T>& a, int64_t P, int64_t end) {
  const int64_t rows = end * a.stride - P;
  return end == a.Ho ? a.H : rows > 0 ? rows : 0;
}

// The tile that a thread comes to after the output rows before y of image n: the next one, or the first of what is
// likely its next image. Output rows [y, end), rows of x [x, x_end) that are new, and [done, complete) of its gradient.
struct NextTile {
  int64_t n, y, end, x, x_end, done, complete;

  template <class T>
  NextTile(const BranchConv<T>& a, int64_t n, int64_t y)
      : n(y < a.Ho ? n : n + a.next), y(y < a.Ho ? y : 0) {
    const int64_t P = border(a), next = this->y + chunk_rows(a.Wo);
    end = next < a.Ho ? next : a.Ho;
    x = this->y ? rows_read(a, P, this->y) : 0, x_end = rows_read(a, P, end);
    done = this->y ? rows_complete(a, P, this->y) : 0, complete = rows_complete(a, P, end);
  }
};

// x is stored as X, every z as Z, which is written.
template <class T, class X, class Z>
void ask_forward(const BranchConv<T>& a, const NextTile& t, Ahead& ahead) {
  ahead.clear();
  if (t.n >= a.N) return;
  ahead.add(stored_as<X>(a.x), t.n, t.x, t.x_end - t.x, a.W, a.Ci);
  for (int64_t i = 0; i < a.branches; ++i) {
    const int64_t w = a.branch[i].z_pitch;
    const Image<Z> z{static_cast<Z*>(a.branch[i].z), a.Ho * a.Wo * w, a.Wo * w, w};
    ahead.add<true>(z, t.n, t.y, t.end - t.y, a.Wo, a.Co);
  }
}

// `image`: whether all of x is read, not just for relu's mask where the gradient is complete.
template <class T, class X, class Z>
void ask_backward(const BranchConv<T>& a, const NextTile& t, bool image, Ahead& ahead) {
  ahead.clear();
  if (t.n >= a.N) return;
  for (int64_t i = 0; i < a.branches; ++i) {
    const Branch<T>& b = a.branch[i];
    const bool asked = i > 0 && b.g.data == a.branch[i - 1].g.data;
    if (!asked) ahead.add(b.g, t.n, t.y, t.end - t.y, a.Wo, a.Co);
    if (b.saved.data) ahead.add(stored_as<Z>(b.saved), t.n, t.y, t.end - t.y, a.Wo, a.Co);
  }
  const int64_t rows = a.dx.data ? t.complete - t.done : 0;
  if (image) ahead.add(stored_as<X>(a.x), t.n, t.x, t.x_end - t.x, a.W, a.Ci);
  else if (a.relu) ahead.add(stored_as<X>(a.x), t.n, t.done, rows, a.W, a.Ci);
  ahead.add<true>(a.dx, t.n, t.done, rows, a.W, a.Ci);
  if (a.base.data && a.base.data != a.dx.data) ahead.add(a.base, t.n, t.done, rows, a.W, a.Ci);
  if (a.onto.data && a.onto.data != a.dx.data) ahead.add(a.onto, t.n, t.done, rows, a.W, a.Ci);
}

}  // namespace dartsfast::DARTSFAST_ISA
