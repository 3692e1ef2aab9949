// A program of dartsfast/fused/program.py as numbers, read against the memory that its slots lie in.
#pragma once

#include <vector>

#include "../array.h"
#include "tensors.h"

namespace dartsfast {

// In the order of dartsfast/fused/encode.py.
enum class Op : int64_t {
  branch_conv,
  pool3x3,
  norm_stats,
  mixed_sum,
  mixed_sum_backward,
  norm_stats_backward,
  branch_conv_backward,
  pool3x3_backward,
  add,
  zero,
  copy,
  count
};

using Arrays = std::vector<Array>;

struct Instruction {
  Op op;
  std::vector<Arrays> reads, writes;  // an argument each; null data: what nobody reads
  std::vector<int64_t> numbers;
  std::vector<bool> made = {};  // of its norms, those that the section before makes
};

// Memory that refs point into: `count` elements of `size` bytes.
struct Base {
  char* data = nullptr;
  int64_t count = 0, size = 0;
  Storage storage = Storage::own;
};

// Reads numbers one after the other; what leaves the code or the memory fails.
class Code {
 public:
  Code(const int64_t* code, int64_t length) : next_(code), end_(code + length) {}

  int64_t number() {
    check(next_ < end_, "the program's code ends early");
    return *next_++;
  }
  int64_t count() {
    const int64_t n = number();
    check(n >= 0 && n <= end_ - next_, "the program's code holds a count of ", n);
    return n;
  }
  std::vector<int64_t> numbers() {
    std::vector<int64_t> found(count());
    for (int64_t& n : found) n = number();
    return found;
  }
  Instruction instruction(const std::vector<Base>& bases) {
    Instruction found{static_cast<Op>(number()), {}, {}, {}, {}};
    check(found.op >= Op::branch_conv && found.op < Op::count, "the program's code holds an unknown operator");
    for (auto* side : {&found.reads, &found.writes}) {
      side->resize(count());
      for (Arrays& part : *side) {
        part.resize(count());
        for (Array& one : part) one = array(bases);
      }
    }
    found.numbers = numbers();
    found.made.resize(found.reads.empty() ? 0 : found.reads[0].size());
    return found;
  }
  std::vector<Instruction> section(const std::vector<Base>& bases) {
    std::vector<Instruction> found(count());
    for (Instruction& one : found) one = instruction(bases);
    return found;
  }

 private:
  Array array(const std::vector<Base>& bases) {
    const int64_t base = number();
    if (base < 0) return Array();
    check(base < static_cast<int64_t>(bases.size()), "the program's code points at memory ", base);
    const int64_t offset = number();
    int64_t last = offset;
    bool good = offset >= 0;
    Array found;
    found.dim = number();
    check(found.dim >= 0 && found.dim <= 5, "the program's code holds ", found.dim, " dimensions");
    for (int64_t i = 0; i < found.dim; ++i) {
      found.size[i] = number(), found.stride[i] = number();
      good = good && found.size[i] > 0 && found.stride[i] >= 0;
      last += (found.size[i] - 1) * found.stride[i];
    }
    check(good && last < bases[base].count, "the program's code leaves memory ", base);
    found.data = bases[base].data + offset * bases[base].size;
    found.storage = bases[base].storage;
    return found;
  }

  const int64_t *next_, *end_;
};

}  // namespace dartsfast
