// A planted kernel takes x [1024] and y [1024]; its launcher is called <name>.
#pragma once

#include <runtime.h>

using dartsfast::launch;
using dartsfast::Stream;

#define LAUNCHER(name, kernel, grid, block, shared) \
  extern "C" void name(const float* x, float* y) { launch(kernel, grid, block, shared, Stream{}, x, y); }
