// Tickets for the calls of a run: zeros on the current device. Those of a program share memory, and one launch for it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "arrivals.h"
#include "device_memory.h"
#include "image.h"
#include "section.h"

namespace dartsfast {

// Memory of torch's allocator, so that a captured graph has its own, made zero in every replay.
struct Zeroed {
  explicit Zeroed(int64_t n) : memory(n), args{memory.get(), n} {}
  unsigned* at(int64_t i) const { return reinterpret_cast<unsigned*>(memory.get()) + i; }
  Work zeros() const { return work<cuda::Zeros<float>, cuda::zeros<float>>(args); }

  Memory<float> memory;  // of a float each
  cuda::Zeros<float> args;
  int64_t taken = 0;
};

// While it lives, calls on this thread take theirs from memory that they share, as far as it goes.
class Shared {
 public:
  Shared() { current() = this; }
  ~Shared() { current() = nullptr; }
  Shared(const Shared&) = delete;

  std::vector<Work> first() const { return {zeroed_.zeros()}; }

 private:
  friend class Tickets;
  static Shared*& current() {
    static thread_local Shared* found = nullptr;
    return found;
  }
  Zeroed zeroed_{1 << 15};
};

class Tickets {
 public:
  Tickets() = default;
  explicit Tickets(int64_t n) {
    Shared* const shared = Shared::current();
    if (!shared || shared->zeroed_.taken + n > shared->zeroed_.args.count) {
      own_ = std::make_shared<Zeroed>(n), next_ = own_->at(0);
    } else {
      next_ = shared->zeroed_.at(std::exchange(shared->zeroed_.taken, shared->zeroed_.taken + n));
    }
  }
  unsigned* take(int64_t n) { return std::exchange(next_, next_ + n); }

  // The work of those who take them.
  Work after(Work work) const {
    if (own_) work.before = std::make_shared<Work>(own_->zeros());
    return work;
  }

 private:
  std::shared_ptr<Zeroed> own_;  // null: shared
  unsigned* next_ = nullptr;
};

}  // namespace dartsfast
