"""The extension with kernels for CUDA in the place of those for CPUs, emulated: for ``DARTSFAST_LIBRARY``.

It has the operators that there are kernels for, and computes on tensors on the CPU.
"""

from pathlib import Path

import torch

from emulator import build

TORCH = Path(torch.__file__).parent
FLAGS = (
    "-DDARTSFAST_EMULATED",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-Wno-attributes",  # without hidden symbols, which tests call
    f"-isystem{TORCH / 'include'}",
)
LINK = (f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10")


def names() -> list[str]:
    """Return the operators that have kernels for CUDA."""
    kernels = {path.name.removesuffix(".call.h") for path in (build.CSRC / "cuda").glob("*.call.h")}
    return sorted(path.stem for path in (build.CSRC / "ops").glob("*.cpp") if path.stem in kernels)


def library(checked: bool = False) -> Path:
    """Return the library, built unless it was before; ``checked``: every access of its kernels is."""
    csrc, ops = build.CSRC, names()
    if {"branch_conv", "pool3x3"} <= set(ops):
        ops.append("program")
    sources = [csrc / "ops" / f"{op}.cpp" for op in ops]
    sources += sorted([*(csrc / "cuda").glob("*.cpp"), *(csrc / "cuda").glob("*.cu")])
    sources.append(Path(__file__).with_name("standin") / "standin.cpp")
    return build.library("operators", sources, checked, FLAGS, LINK)
