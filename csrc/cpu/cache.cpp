#include "cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

namespace dartsfast {
namespace {

constexpr size_t kSmallest = 256 << 10;  // bytes; smaller tensors are left to torch
constexpr size_t kLargestRatio = 2;       // of a block to what it is taken or given back for

constexpr size_t kPage = 4 << 10, kLargePage = 2 << 20;

// Large pages where the system has them: a kernel reads from and writes to a dozen images side by side, and goes to
// another page of each every few hundred cycles. What does not fill one at the end has small ones.
void* map(size_t bytes) {
  const size_t room = bytes < kLargePage ? 0 : kLargePage;
  void* const found = mmap(nullptr, bytes + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED || room == 0) return found;
  char* const begin = static_cast<char*>(found);
  const size_t before = -reinterpret_cast<size_t>(begin) % kLargePage, used = (bytes + kPage - 1) / kPage * kPage;
  if (before) munmap(begin, before);
  if (before < room) munmap(begin + before + used, room - before);
  madvise(begin + before, used, MADV_HUGEPAGE);
  return begin + before;
}

// Blocks that no tensor uses are kept, by size, as long as all blocks together stay within the
// most that was ever in use, or not much more; a block that is too large for what it serves is in use as a whole.
// They are mapped one by one: from a heap shared with small tensors, what is given back would stay in pieces.
class Cache {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ += bytes;
    most_ = std::max(most_, used_);
    auto found = idle_.find(bytes);
    // Rather a block that is too large than to give one back and have another's pages filled with zeros.
    if (found == idle_.end() && used_ + idle_bytes_ > most_) found = idle_.lower_bound(bytes);
    void* block = nullptr;
    if (found != idle_.end() && found->first <= kLargestRatio * bytes) {
      used_ += found->first - bytes;
      bytes = found->first;
      block = found->second.back();
      pop(found);
    } else {
      while (used_ + idle_bytes_ > most_ && release(used_ + idle_bytes_ - most_)) {
      }
      block = map(bytes);
    }
    if (block == MAP_FAILED) {
      used_ -= bytes;
      throw std::bad_alloc();
    }
    sizes_[block] = bytes;
    return block;
  }

  void give_back(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t bytes = sizes_[block];
    used_ -= bytes;
    idle_bytes_ += bytes;
    idle_[bytes].push_back(block);
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (release(idle_bytes_)) {
    }
    most_ = used_;
  }

 private:
  using Idle = std::map<size_t, std::vector<void*>>;

  void pop(Idle::iterator found) {
    idle_bytes_ -= found->first;
    found->second.pop_back();
    if (found->second.empty()) idle_.erase(found);
  }

  // Unmap the largest idle block of at most `bytes`, else the smallest unless that is far too large: its pages
  // would have to be faulted in again. Return whether one was.
  bool release(size_t bytes) {
    auto found = idle_.upper_bound(bytes);
    if (found != idle_.begin()) --found;
    if (found == idle_.end() || found->first > kLargestRatio * bytes) return false;
    sizes_.erase(found->second.back());
    munmap(found->second.back(), found->first);
    pop(found);
    return true;
  }

  std::mutex mutex_;
  Idle idle_;
  std::unordered_map<void*, size_t> sizes_;
  size_t used_ = 0, idle_bytes_ = 0, most_ = 0;
};

// Never destroyed: tensors may outlive every static object.
Cache& cache() {
  static Cache* one = new Cache();
  return *one;
}

void give_back(void* block) { cache().give_back(block); }

// Workspaces that no call uses: one, or as many as there were calls at a time.
struct Workspaces {
  std::mutex mutex;
  std::multimap<size_t, void*> idle;
};

Workspaces& workspaces() {
  static Workspaces* one = new Workspaces();
  return *one;
}

void empty_cache() {
  cache().clear();
  Workspaces& all = workspaces();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& [bytes, data] : all.idle) munmap(data, bytes);
  all.idle.clear();
}

Tensor checked_empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  double count = 1;
  for (int64_t size : sizes) {
    check(size >= 0, "sizes must not be negative, got ", size);
    count *= static_cast<double>(size);
  }
  check(count < 1e12, "sizes are too large: ", count, " elements");
  return empty(like, sizes);
}

}  // namespace

Workspace::Workspace(size_t bytes) : data_(nullptr), bytes_(bytes) {
  if (bytes == 0) return;
  Workspaces& all = workspaces();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (!all.idle.empty()) {
    const auto largest = std::prev(all.idle.end());
    if (largest->first >= bytes) {
      bytes_ = largest->first, data_ = static_cast<char*>(largest->second);
    } else {
      munmap(largest->second, largest->first);
    }
    all.idle.erase(largest);
  }
  if (data_) return;
  void* const block = map(bytes);
  if (block == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<char*>(block);
}

Workspace::~Workspace() {
  if (!data_) return;
  Workspaces& all = workspaces();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.idle.emplace(bytes_, data_);
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  size_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = static_cast<int64_t>(count);
  const size_t bytes = (count * like.element_size() + 63) / 64 * 64;
  if (bytes < kSmallest) return torch::stable::new_empty(like, sizes);
  return torch::stable::from_blob(cache().take(bytes), sizes, strides, like.device(), like.scalar_type(), &give_back);
}

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) { m.impl("empty_cache", TORCH_BOX(&empty_cache)); }

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) { m.impl("empty", TORCH_BOX(&checked_empty)); }

}  // namespace dartsfast
