#include "section.h"

#include <map>
#include <utility>

#include "device_memory.h"

namespace dartsfast {

void run_section(const std::vector<Work>& works) {
  // In the order in which the first of each comes.
  std::map<std::pair<Work::Launcher, std::vector<int64_t>>, size_t> known;
  std::vector<std::pair<Work::Launcher, std::vector<const void*>>> launches;
  const auto add = [&](const Work& work) {
    const auto [found, fresh] = known.try_emplace({work.launch, work.alike}, launches.size());
    if (fresh) launches.push_back({work.launch, {}});
    auto& calls = launches[found->second].second;
    calls.insert(calls.end(), work.calls.begin(), work.calls.end());
  };
  for (const Work& work : works) {
    if (work.before) add(*work.before);
  }
  for (const Work& work : works) add(work);
  for (const auto& [launch, calls] : launches) {
    if (!calls.empty()) launch(calls, current_stream());
  }
}

}  // namespace dartsfast
