// Findings and counters, and how they are set and read from outside.
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator.h"
#include "running.h"
#include "symbols.h"
#include "traffic.h"

namespace emulator {

namespace {

constexpr const char* kNames[] = {"synchronisation", "bounds", "uninitialised", "race"};
constexpr size_t kMostKept = 100;

struct Finding {
  Kind kind;
  std::string text;
  const void* pc;
};

std::vector<Finding> findings;
bool collected = false;

}  // namespace

std::string words(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

bool is_new(Kind kind, const void* pc) {
  if (findings.size() >= kMostKept) return false;
  for (const Finding& f : findings) {
    if (pc && f.pc == pc && f.kind == kind) return false;
  }
  return true;
}

void found(Kind kind, const std::string& what, const void* pc) {
  if (!is_new(kind, pc)) return;
  findings.push_back({kind,
                      symbols::function(running.kernel) + ", thread " + words(thread_index(running.thread)) +
                          " of block " + words(blockIdx) + ": " + what,
                      pc});
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
// Of the access in the library's file, as addr2line takes it; 0: none.
uint64_t emulator_finding_place(int i) {
  return findings[i].pc ? reinterpret_cast<uintptr_t>(findings[i].pc) - 1 - symbols::base() : 0;
}

void emulator_memory(const void* pointer, uint64_t bytes, const char* name, int initialised) {
  memory(pointer, bytes, name, initialised);
}
void emulator_forget_memory() { forget_memory(); }

const traffic::Counters* emulator_counters() { return &traffic::counters; }
void emulator_clear_counters() { traffic::clear(); }
// Of each kernel that was launched.
int emulator_kernels() { return static_cast<int>(traffic::kernels.size()); }
const char* emulator_kernel_name(int i) {
  static std::string name;
  return (name = symbols::function(traffic::kernels[i].kernel)).c_str();
}
const traffic::Counters* emulator_kernel_counters(int i) { return &traffic::kernels[i].counters; }
}

}  // namespace emulator
