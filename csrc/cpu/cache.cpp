#include "cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

namespace dartsfast {
namespace {

constexpr size_t kSmallest = 256 << 10;  // bytes; smaller tensors are left to torch
constexpr size_t kSmallestMoved = 64 << 10;  // pages as few are as soon there anew
constexpr size_t kMostPieces = 8192;  // of all that was ever in use: the kernel keeps no more than 65,530 apart
constexpr size_t kLargePage = 2 << 20;

size_t whole(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

size_t whole_pages(size_t bytes) {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return whole(bytes, page);
}

// Large pages where the system has them: a kernel reads from and writes to a dozen images side by side, and goes to
// another page of each every few hundred cycles. What does not fill one at the end has small ones.
void* map(size_t bytes) {
  const size_t room = bytes < kLargePage ? 0 : kLargePage;
  void* const found = mmap(nullptr, bytes + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  if (room == 0) return found;
  char* const begin = static_cast<char*>(found);
  const size_t before = -reinterpret_cast<size_t>(begin) % kLargePage;
  if (before) munmap(begin, before);
  if (before < room) munmap(begin + before + bytes, room - before);
#ifdef MADV_HUGEPAGE
  madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
  return begin + before;
}

// Where memory lies, and how long the pieces are that it was put together from.
struct Block {
  char* data;
  size_t bytes;
  bool large;  // whole large pages
  std::vector<size_t> pieces;
};

// Blocks that no tensor uses are kept, by size, as long as all blocks together stay within the most that was ever
// in use. A block of another size is put together from their pages, which move there and are not copied: pages from
// the system would have to be filled with zeros first. Large pages come apart where they move in pieces of any size:
// what is hardly more in whole large pages has these, and they move among such blocks only. All are mapped one by
// one: from a heap shared with small tensors, what is given back would stay in pieces.
class Cache {
 public:
  // Memory for a tensor.
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t whole_large = whole(bytes, kLargePage);
    const bool large = whole_large - bytes <= bytes / 16;
    bytes = large ? whole_large : whole_pages(bytes);
    const auto found = idle_[large].lower_bound(bytes);
    const bool fits = found != idle_[large].end() && found->first - bytes <= bytes / 64;  // a page for small things more
    return use(fits ? pop(idle_[large], found) : make(bytes, large));
  }

  // Memory for as long as a call runs: whatever is large enough, since nothing else will have asked for it by then.
  void* borrow(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool large = bytes >= kLargePage;
    bytes = large ? whole(bytes, kLargePage) : whole_pages(std::max(bytes, kSmallest));
    const auto found = idle_[large].lower_bound(bytes);
    return use(found != idle_[large].end() ? pop(idle_[large], found) : make(bytes, large));
  }

  void give_back(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(data);
    used_bytes_ -= found->second.bytes;
    keep(std::move(found->second));
    used_.erase(found);
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Idle& idle : idle_) {
      for (const auto& [bytes, blocks] : idle) {
        for (const Block& block : blocks) munmap(block.data, bytes);
      }
      idle.clear();
    }
    idle_bytes_ = 0;
    most_ = used_bytes_;
  }

 private:
  using Idle = std::map<size_t, std::vector<Block>>;

  void* use(Block block) {
    used_bytes_ += block.bytes;
    most_ = std::max(most_, used_bytes_);
    char* const data = block.data;
    used_.emplace(data, std::move(block));
    return data;
  }

  void keep(Block block) {
    idle_bytes_ += block.bytes;
    idle_[block.large][block.bytes].push_back(std::move(block));
  }

  Block pop(Idle& idle, Idle::iterator found) {
    Block block = std::move(found->second.back());
    idle_bytes_ -= block.bytes;
    found->second.pop_back();
    if (found->second.empty()) idle.erase(found);
    return block;
  }

  // A block of new pages as far as there may be more, and of idle ones. Where these are of the other size, they go.
  Block make(size_t bytes, bool large) {
    size_t room = std::max(most_, used_bytes_ + bytes) - used_bytes_ - idle_bytes_;
    Block block{static_cast<char*>(map(bytes)), bytes, large, {}};
    size_t missing = bytes;
    while (missing > room) {
      const bool own = !idle_[large].empty();
      const size_t taken = cut(own ? large : !large, missing - room, own ? block.data + bytes - missing : nullptr);
      if (own) block.pieces.push_back(taken), missing -= taken;
      else room += taken;
    }
    if (missing) block.pieces.push_back(missing);
    return block;
  }

  // Takes `wanted` bytes off an idle block, in whole pages, of the largest that goes whole if there is one, or as many
  // as it has; moves them to where they are to be, if anywhere; returns how many.
  size_t cut(bool large, size_t wanted, char* to) {
    const size_t most = large ? whole(wanted, kLargePage) : wanted;
    auto found = idle_[large].upper_bound(most);
    if (found != idle_[large].begin()) --found;
    Block block = pop(idle_[large], found);
    const size_t bytes = std::min(block.pieces.back(), most);
    block.bytes -= bytes;
    block.pieces.back() -= bytes;
    char* const from = block.data + block.bytes;
    const size_t least = std::max(kSmallestMoved, most_ / kMostPieces);
    if (!to || bytes < least || !move_pages(from, bytes, to)) munmap(from, bytes);
    if (block.pieces.back() == 0) block.pieces.pop_back();
    if (block.bytes) keep(std::move(block));
    return bytes;
  }

  static bool move_pages(char* from, size_t bytes, char* to) {
#ifdef __linux__
    return mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
#else
    return false;
#endif
  }

  std::mutex mutex_;
  Idle idle_[2];  // of small pages, of large ones
  std::unordered_map<void*, Block> used_;
  size_t used_bytes_ = 0, idle_bytes_ = 0, most_ = 0;
};

// Never destroyed: tensors may outlive every static object.
Cache& cache() {
  static Cache* one = new Cache();
  return *one;
}

void give_back(void* block) { cache().give_back(block); }

void empty_cache() { cache().clear(); }

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

Workspace::Workspace(size_t bytes) : data_(bytes ? static_cast<char*>(cache().borrow(bytes)) : nullptr) {}

Workspace::~Workspace() {
  if (data_) give_back(data_);
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, std::optional<ScalarType> dtype) {
  const ScalarType type = dtype ? *dtype : like.scalar_type();
  // Another dtype is one of 16 bits, or the float32 of arithmetic on these.
  const size_t element = type == like.scalar_type() ? like.element_size() : storage(type) == Storage::own ? 4 : 2;
  size_t count = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = static_cast<int64_t>(count);
  const size_t bytes = (count * element + 63) / 64 * 64;
  if (bytes < kSmallest) return torch::stable::new_empty(like, sizes, type);
  return torch::stable::from_blob(cache().take(bytes), sizes, strides, like.device(), type, &give_back);
}

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CompositeExplicitAutograd, m) { m.impl("empty_cache", TORCH_BOX(&empty_cache)); }

STABLE_TORCH_LIBRARY_IMPL(dartsfast, CPU, m) { m.impl("empty", TORCH_BOX(&checked_empty)); }

}  // namespace dartsfast
