// Numbers copied to where they are stored in 16 bits.
#pragma once

#include "stored.h"

namespace dartsfast::DARTSFAST_ISA {

template <Storage AS>
void store_numbers(const float* from, int64_t count, void* to) {
  Half<AS>* const out = static_cast<Half<AS>*>(to);
  each_register<float>(count, [=](int64_t c, auto left) {
    store_channels(load_channels(from + c, left), out + c, left);
  });
}

}  // namespace dartsfast::DARTSFAST_ISA
