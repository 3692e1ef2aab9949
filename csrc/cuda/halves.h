#pragma once

namespace dartsfast {

// Whether images may be stored in 16 bits.
constexpr bool kHalves = true;

}  // namespace dartsfast
