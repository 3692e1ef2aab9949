// Runs the portable kernels on made-up numbers and prints a checksum of the bits of each result: the same on every
// processor, compiler and level of optimisation. Needs neither torch nor Python, so an emulated machine can run it.
#define DARTSFAST_ISA isa_portable
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "branch_conv.kernel.h"
#include "cross_entropy.kernel.h"
#include "fd_hvp.kernel.h"
#include "gemm.kernel.h"
#include "rnn_node.kernel.h"
#include "tap_lists.h"

using namespace dartsfast;
using namespace dartsfast::isa_portable;

namespace {

// Numbers in [-2, 2) of a multiplicative generator, one in sixteen of them far smaller.
template <class T>
std::vector<T> numbers(int64_t n, uint64_t seed) {
  std::vector<T> out(n);
  for (T& x : out) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<T>(static_cast<int64_t>(seed >> 40) - (1 << 23)) / (1 << 22);
    if (seed >> 36 << 60 == 0) x *= static_cast<T>(1e-6);
  }
  return out;
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
  uint64_t sum = 14695981039346656037u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) sum = (sum ^ bytes[i]) * 1099511628211u;
  std::printf("%s %zu %016llx\n", name, sizeof(T), static_cast<unsigned long long>(sum));
}

template <class T>
void branch_conv() {
  constexpr int64_t H = 7, W = 11, Ci = 12, Co = 20, K = 5, D = 2, stride = 2, Ho = 4, Wo = 6;
  auto x = numbers<T>(H * W * Ci, 1);
  const auto norm = numbers<T>(2 * padded(Ci), 2);
  const auto taps = numbers<T>(K * K * padded(Ci), 3), pointwise = numbers<T>(Ci * padded(Co), 4);
  std::vector<T> z(Ho * Wo * Co), moments(chunks(Ho, Wo) * 2 * padded(Co));
  const int64_t P = halo(K, D);
  const Taps list = forward_taps(K, D, P, W + 2 * P);
  Branch<T> b = {};
  b.kernel = K, b.dilation = D, b.taps = taps.data(), b.forward = &list, b.pointwise = pointwise.data();
  b.z = z.data(), b.z_pitch = Co, b.moments = moments.data();
  const StoredImage image = {x.data(), H * W * Ci, W * Ci, Ci, Storage::own};
  BranchConv<T> a = {1, H, W, Ci, Co, Ho, Wo, stride, 1, image, norm.data(), true, 1, &b};
  std::vector<T> scratch(scratch_size(a));
  branch_conv_image<T, T, T>(a, 0, scratch.data(), true);
  print("branch_conv", z);
  print("moments", moments);
}

template <class T>
void gemm() {
  constexpr int64_t M = 13, N = 33, K = 330;
  const auto a = numbers<T>(M * K, 5), b = numbers<T>(K * N, 6);
  std::vector<T> out = numbers<T>(M * N, 7), scratch(kGemmScratch);
  gemm_part<T>({M, N, K, {a.data(), K, 1}, {b.data(), N, 1}, {out.data(), N, 1}, true}, scratch.data());
  print("gemm", out);
}

template <class T>
void cross_entropy() {
  constexpr int64_t V = 70;
  const auto bias = numbers<T>(V, 8);
  auto row = numbers<T>(V, 9);
  const RowLoss<T> loss = cross_entropy_row<T>({V, bias.data(), T(0.2)}, row.data(), 3);
  row.push_back(loss.sum), row.push_back(loss.label);
  print("cross_entropy", row);
}

template <class T>
void rnn_node() {
  constexpr int64_t P = 3, B = 6, H = 20;
  const auto gates = numbers<T>(P * B * 2 * H, 10), states = numbers<T>(P * B * H, 11);
  const auto weights = numbers<T>(P * kWeightSums, 12);
  RnnNode<T> a = {P, B, H, {gates.data(), B * 2 * H, 2 * H}, {states.data(), B * H, H}, weights.data()};
  std::vector<T> out(B * H), moments(2 * kBlockChannels * chunks(B, 1)), scratch(kRnnNodeScratch);
  a.out = out.data(), a.moments = moments.data();
  rnn_node_part(a, 0, scratch.data());
  print("rnn_node", out);
}

template <class T>
void all() {
  branch_conv<T>();
  gemm<T>();
  cross_entropy<T>();
  rnn_node<T>();
  print("fd_norm", std::vector<double>{fd_norm_chunk(numbers<T>(500, 13).data(), 500)});
}

}  // namespace

int main() {
  all<float>();
  all<double>();
}
