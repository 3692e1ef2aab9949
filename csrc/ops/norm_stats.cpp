// norm_stats; the contract is in dartsfast/ops/norm_stats.py.
#include "norm_stats.call.h"

#include <limits>
#include <optional>

#include "served.h"
#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_norms(const Tensor& norm, const char* name) {
  check_ours(norm, name);
  check(norm.scalar_type() == ScalarType::Float || norm.scalar_type() == ScalarType::Double, name,
        " must be float32 or float64");
  check(norm.dim() == 3 && norm.size(1) == 2 && norm.numel() > 0, name, " must be [norms, 2, C], not empty, got ",
        shape{norm});
}

void check_count(const Tensors& tensors, int64_t norms, const char* name) {
  const int64_t count = static_cast<int64_t>(tensors.size());
  check(count == norms, name, " must hold one tensor a norm, or none at all: got ", count, " for ", norms);
}

void check_running(const Tensors& running, const Tensor& stats, const char* name) {
  check_count(running, stats.size(0), name);
  for (const Tensor& t : running) {
    check_like(t, stats, name);
    check_shape(t, {stats.size(2)}, name);
    check(t.is_contiguous(), name, " must be contiguous");
  }
}

void check_batches(const Tensors& batches, int64_t norms) {
  check_count(batches, norms, "batches");
  for (const Tensor& t : batches) {
    check(is_ours(t) && t.scalar_type() == ScalarType::Long, "batches must be int64 on the ", kDevice);
    check_shape(t, {}, "batches");
  }
}

Tensor norm_stats(const Tensor& stats, const Tensors& running_mean, const Tensors& running_var, const Tensors& batches,
                  const std::optional<double>& momentum, double eps, int64_t pixels) {
  check_norms(stats, "stats");
  const int64_t norms = stats.size(0), C = stats.size(2);
  const bool moves = !running_mean.empty() || !running_var.empty() || !batches.empty();
  if (moves) {
    check_running(running_mean, stats, "running_mean");
    check_running(running_var, stats, "running_var");
    check_batches(batches, norms);
    check(pixels > 1, "pixels must be at least 2, got ", pixels);
  }
  return for_dtype(stats, [&](auto zero) {
    using T = decltype(zero);
    const Tensor now = dense(stats);
    Tensor norm = torch::stable::new_empty(stats, {norms, 2, C});
    const T* from = read<T>(now);
    std::vector<NormToMake<T>> each;
    for (int64_t i = 0; i < norms; ++i) {
      each.push_back({from + i * 2 * C, from + (i * 2 + 1) * C, written<T>(norm) + i * 2 * C});
      if (!moves) continue;
      each[i].running_mean = written<T>(running_mean[i]), each[i].running_var = written<T>(running_var[i]);
      each[i].batches = written<int64_t>(batches[i]);
    }
    const T share = momentum ? static_cast<T>(*momentum) : std::numeric_limits<T>::quiet_NaN();
    NormStatsCall<T> call({C, pixels, static_cast<T>(eps), share}, each);
    run_section({call.norms()});
    return norm;
  });
}

Tensor norm_stats_backward(const Tensor& g_mean, const Tensor& g_zhat_mean, const Tensor& norm,
                           const std::optional<Tensor>& weights, const Tensor& own) {
  check_norms(norm, "norm");
  const int64_t norms = norm.size(0), C = norm.size(2);
  const auto check_is = [&](const Tensor& t, std::initializer_list<int64_t> sizes, const char* name) {
    check_like(t, norm, name);
    check_shape(t, sizes, name);
  };
  check_is(g_mean, {norms, C}, "g_mean");
  check_is(g_zhat_mean, {norms, C}, "g_zhat_mean");
  if (weights) check_is(*weights, {norms}, "weights");
  check_is(own, {norms}, "own");
  return for_dtype(norm, [&](auto zero) {
    using T = decltype(zero);
    Tensors kept;
    const auto data = [&](const Tensor& t) { return read<T>(kept.emplace_back(dense(t))); };
    const T *m = data(g_mean), *r = data(g_zhat_mean), *by = data(norm), *batch = data(own);
    const T* w = weights ? data(*weights) : nullptr;
    Tensor coef = torch::stable::new_empty(norm, {norms, 4, C});
    std::vector<CoefficientsToMake<T>> each;
    for (int64_t i = 0; i < norms; ++i) {
      each.push_back({m + i * C, r + i * C, by + i * 2 * C, w ? w + i : nullptr, written<T>(coef) + i * 4 * C, true,
                      batch + i});
    }
    CoefficientsCall<T> call(C, each);
    run_section({call.norms()});
    return coef;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, DARTSFAST_KEY, m) {
  m.impl("norm_stats_", DARTSFAST_BOX(norm_stats));
  m.impl("norm_stats_backward", DARTSFAST_BOX(norm_stats_backward));
}

}  // namespace dartsfast
