// norm_stats on the CPU; the contract is in dartsfast/ops/norm_stats.py. A few hundred elements: no kernel needed.
#include "norm_stats.call.h"

#include <optional>

#include "tensors.h"

namespace dartsfast {
namespace {

using Tensors = std::vector<Tensor>;

void check_norms(const Tensor& norm, const char* name) {
  check(norm.is_cpu(), name, " must be a CPU tensor");
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
    check(t.is_cpu() && t.scalar_type() == ScalarType::Long, "batches must be int64 on the CPU");
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
    const std::vector<T> now = values<T>(stats);
    Tensor norm = torch::stable::new_empty(stats, {norms, 2, C});
    T* out = written<T>(norm);
    for (int64_t i = 0; i < norms; ++i) {
      const T *mean = now.data() + i * 2 * C, *variance = mean + C;
      write_norm(mean, variance, C, static_cast<T>(eps), out + i * 2 * C);
      if (!moves) continue;
      move_running<T>(mean, variance, C, pixels,
                      {written<T>(running_mean[i]), written<T>(running_var[i]), written<int64_t>(batches[i]), momentum});
    }
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
    const std::vector<T> m = values<T>(g_mean), r = values<T>(g_zhat_mean), by = values<T>(norm), batch = values<T>(own);
    const std::vector<T> w = weights ? values<T>(*weights) : std::vector<T>();
    Tensor coef = torch::stable::new_empty(norm, {norms, 4, C});
    T* out = written<T>(coef);
    for (int64_t i = 0; i < norms; ++i) {
      write_coefficients<T>(m.data() + i * C, r.data() + i * C, by.data() + i * 2 * C, weights ? &w[i] : nullptr,
                            batch[i] != 0, C, out + i * 4 * C);
    }
    return coef;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) {
  m.impl("norm_stats_", TORCH_BOX(&norm_stats));
  m.impl("norm_stats_backward", TORCH_BOX(&norm_stats_backward));
}

}  // namespace dartsfast
