// What the memory of an instruction must be, so that kernels may run on it.
#pragma once

#include <algorithm>

#include "program.h"

namespace dartsfast {

// Which arguments may be stored in 16 bits.
inline bool read_in_halves(Op op, size_t k) {
  if (op == Op::branch_conv || op == Op::pool3x3 || op == Op::mixed_sum) return k == 0;
  if (op == Op::mixed_sum_backward) return k == 1;
  if (op == Op::branch_conv_backward) return k == 1 || k == 3;
  return op == Op::pool3x3_backward && k == 3;
}
inline bool written_in_halves(Op op, size_t k) {
  return k == 0 && (op == Op::branch_conv || op == Op::pool3x3 || op == Op::copy);
}

// Whether kernels take together what an instruction has in 16 bits: in one way, and not x alone where there is z.
inline bool taken_together(const Instruction& i) {
  const auto all = [](const Arrays& images, auto good) { return std::all_of(images.begin(), images.end(), good); };
  const auto alike = [=](const Arrays& images, Storage as) {
    return all(images, [=](const Array& a) { return a.storage == as; });
  };
  const auto readable = [=](const Arrays& images, Storage as) {
    return all(images, [=](const Array& a) { return a.storage == as || a.storage == Storage::own; });
  };
  const auto first = [](const Arrays& images) { return images.empty() ? Storage::own : images[0].storage; };
  if (i.op == Op::branch_conv || i.op == Op::branch_conv_backward) {
    const bool backward = i.op == Op::branch_conv_backward;
    const Arrays &z = backward ? i.reads[1] : i.writes[0], &x = i.reads[backward ? 3 : 0];
    return alike(z, first(z)) && readable(x, first(z));
  }
  if (i.op == Op::pool3x3) return alike(i.writes[0], first(i.writes[0])) && readable(i.writes[0], first(i.reads[0]));
  if (i.op == Op::copy && first(i.writes[0]) != Storage::own) {
    const Array &from = i.reads[0][0], &to = i.writes[0][0];
    return from.stride[3] == 1 && to.stride[3] == 1;
  }
  return true;
}

// Nobody reads everything that an operator can write; the rest has to be there.
inline void check_memory(const Instruction& i) {
  const bool moments = i.op == Op::branch_conv || i.op == Op::pool3x3;
  const auto stored = [](bool good) {
    check(good, "the program has what is stored in 16 bits where no kernel takes that");
  };
  for (size_t k = 0; k < i.reads.size(); ++k) {
    for (const Array& a : i.reads[k]) {
      check(a.data, "the program reads what nothing wrote");
      stored(a.storage == Storage::own || read_in_halves(i.op, k));
    }
  }
  for (size_t k = 0; k < i.writes.size(); ++k) {
    for (const Array& a : i.writes[k]) stored(a.storage == Storage::own || written_in_halves(i.op, k));
    const bool weights = i.op == Op::branch_conv_backward && k > 0, halves = i.op == Op::pool3x3 && k == 0;
    check(!halves || i.writes[k][0].data || i.writes[k][1].data, "the program has a pool that nobody reads");
    if ((moments && k == 1) || weights || halves || i.op == Op::mixed_sum_backward) continue;
    for (const Array& a : i.writes[k]) check(a.data, "the program writes to no memory");
  }
  stored(taken_together(i));
}

}  // namespace dartsfast
