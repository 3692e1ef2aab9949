#include "section.h"

#include <algorithm>
#include <atomic>

namespace dartsfast {

int64_t worth(int64_t N, int64_t cost) {
  return std::min({N, N * cost / kWorthAThread + 1, static_cast<int64_t>(torch::stable::get_num_threads())});
}

void run_section(const std::vector<Work>& works) {
  int64_t items = 0, cost = 0;
  for (const Work& work : works) items += work.items, cost += work.items * work.cost;
  const int64_t worth = std::min(items, cost / kWorthAThread + 1);
  const int64_t threads = worth > 1 ? std::min<int64_t>(worth, torch::stable::get_num_threads()) : worth;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const Work *work = works.data(), *last = nullptr;
    int64_t start = 0;  // of the items of `work`
    for (int64_t i = next++; i < items; i = next++) {
      for (; i - start >= work->items; ++work) start += work->items;
      work->run(i - start, work != last);
      last = work;
    }
  });
}

}  // namespace dartsfast
