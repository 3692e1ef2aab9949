// Work on the current stream of the current device.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime.h"

namespace dartsfast {

// What a kernel does for a call: several argument structs, or one; those that are alike may share a launch.
struct Work {
  // The argument structs need not live longer than this.
  using Launcher = void (*)(const std::vector<const void*>& calls, Stream);
  Launcher launch;
  std::vector<const void*> calls;
  std::vector<int64_t> alike;  // works of one launcher with equal numbers
  std::shared_ptr<Work> before = nullptr;        // what must have been done
  std::shared_ptr<const void> memory = nullptr;  // what must live as long as this
};

// The work of LAUNCH(calls, stream) on the argument structs of a call.
template <class A, void (*LAUNCH)(const std::vector<const A*>&, Stream)>
Work work(const std::vector<A>& calls, std::vector<int64_t> alike = {}) {
  const auto launch = [](const std::vector<const void*>& all, Stream stream) {
    std::vector<const A*> typed;
    for (const void* one : all) typed.push_back(static_cast<const A*>(one));
    LAUNCH(typed, stream);
  };
  Work found{launch, {}, std::move(alike)};
  for (const A& call : calls) found.calls.push_back(&call);
  return found;
}
template <class A, void (*LAUNCH)(const std::vector<const A*>&, Stream)>
Work work(const A& call, std::vector<int64_t> alike = {}) {
  Work found = work<A, LAUNCH>(std::vector<A>(), std::move(alike));
  found.calls.push_back(&call);
  return found;
}

// All works, those that are alike in the same launches; nothing in them depends on another, but on what is before.
void run_section(const std::vector<Work>& works);

}  // namespace dartsfast
