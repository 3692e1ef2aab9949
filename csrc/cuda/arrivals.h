// Which blocks of a launch come to finish what all of them leave, see finish.h.
#pragma once

#include <cstdint>

namespace dartsfast::cuda {

// Of each of `count` chunks `each` blocks.
struct Arrivals {
  unsigned* tickets;  // null: nothing is finished
  int32_t count, each;
};

// Tickets of `count` chunks: one for eight neighbours, then for eight of those.
inline int64_t tickets_of(int64_t count) {
  int64_t found = 0;
  do found += count = (count + 7) / 8;
  while (count > 1);
  return found;
}

}  // namespace dartsfast::cuda
