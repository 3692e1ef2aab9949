// Findings, and how they are read from outside.
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator.h"
#include "running.h"

namespace emulator {

namespace {

constexpr const char* kNames[] = {"synchronisation", "bounds", "uninitialised", "race"};
constexpr size_t kMostKept = 100;

struct Finding {
  Kind kind;
  std::string text;
  const void *kernel, *pc;
};

std::vector<Finding> findings;
bool collected = false;

}  // namespace

std::string words(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

void found(Kind kind, const std::string& what, const void* pc) {
  if (findings.size() >= kMostKept) return;
  for (const Finding& f : findings) {
    if (pc && f.pc == pc && f.kind == kind) return;  // once a place in the code
  }
  const std::string thread = running.thread < 0 ? "" : "thread " + words(thread_index(running.thread)) + " of ";
  findings.push_back({kind, thread + "block " + words(blockIdx) + ": " + what, running.kernel, pc});
}

void throw_found() {
  if (collected || findings.empty()) return;
  const std::string first = findings.front().text;
  findings.clear();
  throw std::runtime_error("emulated CUDA: " + first);
}

extern "C" {

// Findings are kept until they are read, or (0) each launch throws the first of its own.
void emulator_collect(int collect) { collected = collect, findings.clear(); }

int emulator_findings() { return static_cast<int>(findings.size()); }
const char* emulator_finding_kind(int i) { return kNames[static_cast<int>(findings[i].kind)]; }
const char* emulator_finding_text(int i) { return findings[i].text.c_str(); }
}

}  // namespace emulator
