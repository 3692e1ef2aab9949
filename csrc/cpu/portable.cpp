// The same kernels for any processor.
#define DARTSFAST_ISA isa_portable
#include "kernels.inc"

namespace dartsfast {
const InstructionSet portable = {"portable", isa_portable::table<float>(portable_halves), isa_portable::table<double>()};
}
