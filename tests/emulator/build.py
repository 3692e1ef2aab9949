"""Compiles CUDA C++ against the emulator, into a shared library."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import compiling
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
TO = ROOT / "build" / "emulator"

# -g1 and symbols let findings name lines and kernels.
FLAGS = ("-std=c++20", "-g1", "-fPIC", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
# Kernels are compiled more often than they run long, and have the same bits either way.
LEVEL, LEVEL_OF_THE_EMULATOR = "-O1", "-O2"
# Static memory of templates would be one in all libraries of the process.
GCC = ("-fno-gnu-unique",)
# Every access of the code calls a function of the emulator. One of 16 bytes must stay one, and
# several must stay several, so what would split or join them is off.
CLANG_CHECKED = ("-fsanitize=thread,bounds", "-fno-vectorize", "-fno-slp-vectorize")
GCC_CHECKED = (
    "-fsanitize=thread,bounds",
    "-fno-tree-sra",
    "-fno-ipa-sra",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-store-merging",
)


def library(
    name: str,
    sources: list[Path],
    checked: bool = False,
    flags: tuple[str, ...] = (),
    link: tuple[str, ...] = (),
    own: tuple[str, ...] = (),
    folder: Path = TO,
) -> Path:
    """Return the shared library of ``sources`` and the emulator.

    Args:
        name: The library's, without suffix.
        sources: CUDA C++ (``.cu``) and C++.
        checked: Whether all accesses of the ``.cu`` files are checked.
        flags: More flags of the compiler for the sources.
        link: More flags of the linker.
        own: More flags of the compiler for the emulator.
        folder: Where libraries are kept, by a hash of sources and flags.
    """
    # Of an inline function the linker takes the first: what the emulator uses must be without checks.
    every = [(source, False, (LEVEL_OF_THE_EMULATOR, *own)) for source in sorted(HERE.glob("*.cpp"))]
    every += [(source, checked and source.suffix == ".cu", (LEVEL, *flags)) for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        objects = list(compilers.map(lambda each: _object(*each, folder), every))
    inputs = [*map(str, objects), *link]
    return compiling.made(folder, f"{name}.so", ["-shared", "-g1", *link], [*inputs, "-ldl"], objects)


def _object(source: Path, checked: bool, flags: tuple[str, ...], folder: Path) -> Path:
    """Compile one source; all headers are taken to be part of it."""
    clang = "clang" in compiling.COMPILER
    every = [*FLAGS, *(() if clang else GCC), *flags, "-c"]
    if checked:
        every += CLANG_CHECKED if clang else GCC_CHECKED
    if platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        every.append("-mfma")  # an fma is one instruction, not a call
    includes = [f"-I{HERE}", f"-I{CSRC / 'cuda'}", f"-I{CSRC}"]
    watched = [source, *CSRC.rglob("*.[hi]*"), *HERE.glob("*.h"), *source.parent.glob("*.h")]
    return compiling.made(folder, f"{source.stem}.o", every, [*includes, "-x", "c++", str(source)], watched)
