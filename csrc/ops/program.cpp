// Runs a program of dartsfast/fused/program.py: all of a cell's forward or backward in one call, one section of
// threads after the other. What instructions read and write is written down there.
#include "program.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <utility>

#include "branch_conv.call.h"
#include "cache.h"
#include "check_program.h"
#include "image.call.h"
#include "mixed_sum.call.h"
#include "norm_stats.call.h"
#include "pool3x3.call.h"
#include "served.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

template <class T>
T* at(const Array& a) {
  return static_cast<T*>(a.data);
}

template <class T>
std::vector<T*> each(const Arrays& arrays) {
  std::vector<T*> found;
  for (const Array& a : arrays) found.push_back(at<T>(a));
  return found;
}

Array maybe(const Arrays& arrays) { return arrays.empty() ? Array() : arrays[0]; }

double as_double(int64_t bits) {
  double number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// Calls of some devices make norms and coefficients where what these are of is finished.
template <class Call, class... Made>
concept Makes = requires(Call& call, const Made&... made) { call.take(made...); };

// What the instructions of a section come to: work at once, what finishes it, and what nothing in the program waits for.
template <class T>
class Section {
 public:
  explicit Section(std::vector<Work> first) : works_(std::move(first)) {}

  void add(const Instruction& i) {
    check_memory(i);
    switch (i.op) {
      case Op::branch_conv: return branch_conv(i);
      case Op::pool3x3: return pool3x3(i);
      case Op::norm_stats: return norm_stats(i);
      case Op::mixed_sum: return mixed_sum(i);
      case Op::mixed_sum_backward: return mixed_sum_backward(i);
      case Op::norm_stats_backward: return norm_stats_backward(i);
      case Op::branch_conv_backward: return branch_conv_backward(i);
      case Op::pool3x3_backward: return pool3x3_backward(i);
      case Op::add: return image(i.reads[0][0], i.reads[1][0], i.writes[0][0]);
      case Op::copy: return image(i.reads[0][0], Array(), i.writes[0][0]);
      case Op::zero: return zero(i.writes[0][0]);
      case Op::count: break;
    }
  }

  // Has calls make what they can of the next section.
  void make(std::vector<Instruction>& next) const {
    for (Instruction& i : next) {
      for (size_t k = 0; k < i.made.size(); ++k) {
        if (i.op == Op::norm_stats) i.made[k] = taken(setting(i), norm(i, k));
        if (i.op == Op::norm_stats_backward) i.made[k] = taken(channels(i), coefficients(i, k));
      }
    }
  }

  void run() const {
    run_section(works_);
    run_section(finishing_);
  }

  const std::vector<Work>& last() const { return last_; }

 private:
  template <class Call, class... Arguments>
  Call& keep(Arguments&&... arguments) {
    auto call = std::make_shared<Call>(std::forward<Arguments>(arguments)...);
    calls_.push_back(call);
    if constexpr (Makes<Call, NormSetting<T>, NormToMake<T>, bool>) {
      norms_.push_back([&call = *call](const auto&... asked) { return call.take(asked...); });
    }
    if constexpr (Makes<Call, int64_t, CoefficientsToMake<T>>) {
      coefficients_.push_back([&call = *call](const auto&... asked) { return call.take(asked...); });
    }
    return *call;
  }

  // All of a norm or nothing: the halves of a factorized reduction give one together.
  bool taken(const NormSetting<T>& setting, const NormToMake<T>& norm) const {
    for (const bool really : {false, true}) {
      for (int64_t c = 0, channels = 0; c < setting.C; c += channels) {
        channels = 0;
        for (size_t k = 0; k < norms_.size() && !channels; ++k) channels = norms_[k](setting, from_channel(norm, c), really);
        const bool whole = c == 0 && channels == setting.C;
        // Of several parts one counts the batches, and the others do not know how many there are.
        if (!channels || (!whole && norm.batches && setting.momentum != setting.momentum)) return false;
      }
    }
    return true;
  }

  bool taken(int64_t C, const CoefficientsToMake<T>& norm) const {
    return std::any_of(coefficients_.begin(), coefficients_.end(), [&](const auto& take) { return take(C, norm); });
  }

  static NormToMake<T> from_channel(NormToMake<T> norm, int64_t c) {
    if (c == 0) return norm;
    norm.mean += c, norm.variance += c, norm.norm += c, norm.batches = nullptr;
    if (norm.running_mean) norm.running_mean += c, norm.running_var += c;
    return norm;
  }

  static BranchConvInputs inputs(const Instruction& i, const Array& x, size_t norm) {
    const size_t taps = i.reads[norm + 1].size(), points = i.reads[norm + 2].size();
    check(taps == 0 || taps == points, "the program has convolutions with and without taps in one instruction");
    return {x, maybe(i.reads[norm]), i.reads[norm + 1], i.reads[norm + 2],
            {i.numbers.begin() + 2, i.numbers.end()}, i.numbers[0], i.numbers[1] != 0};
  }

  static Moments<T> moments(const Array& stats) {
    return stats.data ? Moments<T>{at<T>(stats), at<T>(stats) + stats.stride[0]} : Moments<T>{};
  }

  void branch_conv(const Instruction& i) {
    std::vector<Moments<T>> stats;
    for (const Array& one : i.writes[1]) stats.push_back(moments(one));
    auto& call = keep<BranchConvCall<T>>(inputs(i, i.reads[0][0], 1), i.writes[0], stats);
    works_.push_back(call.images());
    if (stats[0].mean) finishing_.push_back(call.finish());
  }

  void pool3x3(const Instruction& i) {
    const Arrays &z = i.writes[0], &stats = i.writes[1];
    const Both<Moments<T>> into = {moments(stats[0]), moments(stats[1])};
    auto& call = keep<Pool3x3Call<T>>(i.reads[0][0], i.numbers[0], Both<Array>{z[0], z[1]}, into);
    works_.push_back(call.images());
    if (into[0].mean || into[1].mean) finishing_.push_back(call.finish());
  }

  static NormSetting<T> setting(const Instruction& i) {
    return {i.reads[0][0].size[0], i.numbers[0], static_cast<T>(as_double(i.numbers[2])),
            static_cast<T>(as_double(i.numbers[1]))};
  }

  static NormToMake<T> norm(const Instruction& i, size_t k) {
    NormToMake<T> made{at<T>(i.reads[0][k]), at<T>(i.reads[1][k]), at<T>(i.writes[0][k])};
    if (i.writes[1].empty()) return made;
    made.running_mean = at<T>(i.writes[1][k]), made.running_var = at<T>(i.writes[2][k]);
    made.batches = at<int64_t>(i.writes[3][k]);
    return made;
  }

  void norm_stats(const Instruction& i) {
    std::vector<NormToMake<T>> norms;
    for (size_t k = 0; k < i.made.size(); ++k) {
      if (!i.made[k]) norms.push_back(norm(i, k));
    }
    if (!norms.empty()) works_.push_back(keep<NormStatsCall<T>>(setting(i), norms).norms());
  }

  static std::vector<NormedBranch<T>> branches(const Arrays& z, const Arrays& norm) {
    std::vector<NormedBranch<T>> found;
    for (size_t b = 0; b < z.size(); ++b) {
      found.push_back({z[b], at<T>(norm[b]), at<T>(norm[b]) + norm[b].stride[0]});
    }
    return found;
  }

  void mixed_sum(const Instruction& i) {
    std::vector<const T*> weights;
    for (const Array& w : i.reads[2]) weights.push_back(at<T>(w));
    auto& call = keep<MixedSumCall<T>>(branches(i.reads[0], i.reads[1]), weights, maybe(i.reads[3]), i.writes[0][0]);
    works_.push_back(call.images());
  }

  void mixed_sum_backward(const Instruction& i) {
    Arrays rows = i.writes[1];
    rows.insert(rows.end(), i.writes[2].begin(), i.writes[2].end());
    auto& call = keep<MixedSumBackwardCall<T>>(branches(i.reads[1], i.reads[2]), i.reads[0][0], each<T>(i.writes[0]),
                                               each<T>(rows));
    works_.push_back(call.images());
    finishing_.push_back(call.finish());
  }

  static int64_t channels(const Instruction& i) { return i.reads[0][0].size[0]; }

  static CoefficientsToMake<T> coefficients(const Instruction& i, size_t k) {
    const T* weight = i.reads[3].empty() ? nullptr : at<T>(i.reads[3][k]);
    return {at<T>(i.reads[0][k]), at<T>(i.reads[1][k]), at<T>(i.reads[2][k]), weight, at<T>(i.writes[0][k]),
            i.numbers[k] != 0};
  }

  void norm_stats_backward(const Instruction& i) {
    std::vector<CoefficientsToMake<T>> norms;
    for (size_t k = 0; k < i.made.size(); ++k) {
      if (!i.made[k]) norms.push_back(coefficients(i, k));
    }
    if (!norms.empty()) works_.push_back(keep<CoefficientsCall<T>>(channels(i), norms).norms());
  }

  void branch_conv_backward(const Instruction& i) {
    BranchConvGradients<T> out;
    out.g = i.reads[0], out.z = i.reads[1], out.coef = i.reads[2];
    out.base = maybe(i.reads[7]), out.onto = maybe(i.reads[8]), out.dx = maybe(i.writes[0]);
    out.depthwise = each<T>(i.writes[1]), out.pointwise = each<T>(i.writes[2]);
    out.means = at<T>(maybe(i.writes[3]));
    auto& call = keep<BranchConvBackwardCall<T>>(inputs(i, i.reads[3][0], 4), out);
    works_.push_back(call.images());
    const bool waited_for = !Makes<BranchConvBackwardCall<T>, int64_t, CoefficientsToMake<T>>;  // the next section
    (waited_for ? finishing_ : last_).push_back(call.finish());
  }

  void pool3x3_backward(const Instruction& i) {
    const Arrays& coef = i.reads[2];
    Pool3x3Gradients<T> out;
    out.with = {i.numbers[1] != 0, i.numbers[2] != 0};
    out.g = {i.reads[0][0], i.reads[0][0]}, out.coef = {at<T>(coef[0]), at<T>(coef[1])};
    out.base = maybe(i.reads[4]), out.dx = i.writes[0][0], out.skip = at<T>(maybe(i.reads[5]));
    works_.push_back(keep<Pool3x3BackwardCall<T>>(i.reads[3][0], i.numbers[0], out).images());
  }

  void image(const Array& a, const Array& b, const Array& out) {
    works_.push_back(keep<ImageCall<T>>(a, b, out).images());
  }

  void zero(const Array& out) {
    int64_t count = 1;
    for (int64_t k = 0; k < out.dim; ++k) count *= out.size[k];
    works_.push_back(keep<ZeroCall<T>>(out.data, count).zeros());
  }

  std::vector<std::shared_ptr<void>> calls_;  // what works point into
  std::vector<Work> works_, finishing_, last_;
  std::vector<std::function<int64_t(const NormSetting<T>&, const NormToMake<T>&, bool)>> norms_;
  std::vector<std::function<bool(int64_t, const CoefficientsToMake<T>&)>> coefficients_;
};

Base base(const Tensor& t) {
  return {static_cast<char*>(written<char>(t)), t.numel(), static_cast<int64_t>(t.element_size()), storage(t.scalar_type())};
}

// The dtype that a program's code names by number, of a program whose arithmetic is in `own`.
ScalarType dtype_of(int64_t number, ScalarType own) {
  constexpr ScalarType known[] = {ScalarType::Float, ScalarType::Double, ScalarType::Long, ScalarType::BFloat16,
                                  ScalarType::Half};
  check(number >= 0 && number < static_cast<int64_t>(std::size(known)), "the program's code names an unknown dtype");
  const bool halves = storage(known[number]) != Storage::own;
  const bool fits = halves ? own == ScalarType::Float : known[number] == own || known[number] == ScalarType::Long;
  check(fits, "a program's memory does not fit the dtype of its arithmetic");
  return known[number];
}

void read_given(Code& code, ScalarType own, const Tensors& given, std::vector<Base>& bases) {
  check(code.count() == static_cast<int64_t>(given.size()), "the program is given another number of tensors");
  for (const Tensor& t : given) {
    const int64_t count = code.number(), dtype = code.number();
    check(is_ours(t) && t.is_contiguous() && t.numel() == count, "a program is given contiguous tensors on the ", kDevice);
    check(dtype < 0 || t.scalar_type() == dtype_of(dtype, own), "a program is given a tensor of another dtype");
    bases.push_back(dtype < 0 ? Base() : base(t));
  }
}

// A program's own memory, of each dtype in it an arena that the backward has from the forward, and a temporary one.
class OwnMemory {
 public:
  OwnMemory(Code& code, ScalarType own, const Tensor& like, const Tensors& kept, std::vector<Base>& bases) {
    auto given = kept.begin();
    std::vector<std::pair<size_t, int64_t>> places;  // of temporary arenas: which base, from which byte on
    int64_t bytes = 0;
    for (int64_t left = code.count(); left > 0; --left) {
      const ScalarType dtype = dtype_of(code.number(), own);
      const int64_t kept_size = code.number(), temporary_size = code.number();
      check(kept_size >= 0 && temporary_size >= 0, "the program's arenas have negative sizes");
      if (kept_size == 0) {
        bases.push_back(Base());
      } else {
        check(kept.empty() || given != kept.end(), "the program's forward kept fewer arenas");
        const Tensor arena = kept.empty() ? made_.emplace_back(empty(like, {kept_size}, dtype)) : *given++;
        check(arena.numel() == kept_size && arena.scalar_type() == dtype, "the program's forward kept another arena");
        bases.push_back(base(arena));
      }
      const int64_t size = storage(dtype) != Storage::own ? 2 : dtype == ScalarType::Float ? 4 : 8;
      places.emplace_back(bases.size(), bytes);
      bases.push_back({nullptr, temporary_size, size, storage(dtype)});
      bytes += (temporary_size * size + 255) / 256 * 256;
    }
    temporary_ = std::make_unique<Workspace>(bytes);
    for (const auto& [k, begin] : places) bases[k].data = bytes ? temporary_->data() + begin : nullptr;
  }
  // The arenas to be kept that there were not before.
  const Tensors& made() const { return made_; }

 private:
  Tensors made_;
  std::unique_ptr<Workspace> temporary_;  // one for all dtypes: what is borrowed may be larger than asked for
};

// Code: dtype of the arithmetic (0 float32, 1 float64); of each given tensor its count of elements and its dtype, -1
// where nobody reads it; of each returned tensor its sizes; of each dtype in the program's own memory the dtype, the
// elements of the arena that is kept and of the temporary one; of each section its instructions. Memory is numbered:
// given, returned, of each dtype kept and temporary.
template <class T>
Tensors run(Code code, ScalarType own, const Tensors& given, const Tensors& kept) {
  std::vector<Base> bases;
  read_given(code, own, given, bases);
  Tensors found(code.count());
  for (Tensor& t : found) {
    t = empty(given[0], code.numbers(), own);
    bases.push_back(base(t));
  }
  const OwnMemory memory(code, own, given[0], kept, bases);
  const Shared shared;
  std::vector<Work> last;
  const int64_t sections = code.count();
  std::vector<Instruction> now, next;
  if (sections > 0) next = code.section(bases);
  for (int64_t k = 1; k <= sections; ++k) {
    now = std::exchange(next, k < sections ? code.section(bases) : std::vector<Instruction>());
    Section<T> section(k == 1 ? shared.first() : std::vector<Work>());
    for (const Instruction& i : now) section.add(i);
    section.make(next);
    section.run();
    last.insert(last.end(), section.last().begin(), section.last().end());
  }
  run_section(last);
  found.insert(found.end(), memory.made().begin(), memory.made().end());
  return found;
}

Tensors run_program(const Tensor& numbers, const Tensors& given, const Tensors& kept) {
  check(numbers.is_cpu() && numbers.scalar_type() == ScalarType::Long && numbers.dim() == 1 && numbers.is_contiguous(),
        "a program's code is int64 [n] on the CPU");
  check(!given.empty(), "a program is given at least one tensor");
  Code code(static_cast<const int64_t*>(numbers.const_data_ptr()), numbers.numel());
  return code.number() ? run<double>(code, ScalarType::Double, given, kept)
                       : run<float>(code, ScalarType::Float, given, kept);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) { m.impl("run_program", DARTSFAST_BOX(run_program)); }

}  // namespace dartsfast
