"""Instruction sets for tests, compiled by themselves and given to the loaded extension.

What a processor lacks runs all the same: ``avx512-emulated`` is the kernels of AVX-512 with SIMDe in the
place of the instructions (Debian's ``libsimde-dev``), ``portable-wide`` the portable kernels in AVX-512's
shape.
"""

import ctypes
import functools
from pathlib import Path

import compiling
import torch
from compiling import UnavailableError

from dartsfast.backends import native
from dartsfast.backends.instruction_set import names

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
EMULATED, PORTABLE_WIDE = "avx512-emulated", "portable-wide"
ALL = ("avx512", "avx2", "portable", PORTABLE_WIDE)
RAN = "instruction set"
"""Name of the property that a test has of the instruction set on which it ran."""

SOURCES = {EMULATED: "avx512.cpp", PORTABLE_WIDE: "wide.cpp"}
FLAGS = ("-std=c++20", "-shared", "-fPIC", "-g0", "-w", "-ffp-contract=off")
# Without -fno-tree-sra g++ 12 fails on SIMDe's types.
OPTIMISED = {EMULATED: ("-O1", "-fno-tree-sra"), PORTABLE_WIDE: ("-O1",)}


def way(name: str) -> str:
    """Return the name under which ``name`` runs here: its own, or its emulation's.

    Raises:
        UnavailableError: neither the processor nor an emulation has it.
    """
    if name in names():
        return name
    if name in ("avx512", PORTABLE_WIDE):
        return added(EMULATED if name == "avx512" else name)
    raise UnavailableError(f"this processor has no {name}, and nothing emulates it")


@functools.cache
def added(name: str) -> str:
    """Compile an instruction set, unless it was before, and give it to the extension."""
    if name == EMULATED and not Path("/usr/include/simde/x86/avx512.h").exists():
        raise UnavailableError(
            "this processor has no avx512, and SIMDe (libsimde-dev) is not there to emulate it"
        )
    add(build(HERE / SOURCES[name], CSRC, HERE.parents[1] / "build" / "instruction_sets", OPTIMISED[name]))
    return name


def build(source: Path, csrc: Path, to: Path, flags: tuple[str, ...]) -> Path:
    """Compile the kernels of ``csrc`` as ``source`` says, into ``to`` under a name of their contents."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # what SIMDe is fast and fused with
        flags += ("-mavx2", "-mfma")
    includes = f"-I{csrc / 'cpu'}", f"-I{source.parent}"
    watched = [*csrc.rglob("*.[hi]*"), *source.parent.glob("*.[hc]*")]
    return compiling.made(to, f"{source.stem}.so", [*FLAGS, *flags], [*includes, str(source)], watched)


def add(library: Path) -> None:
    """Give the instruction set of a library to the extension."""
    kernels = ctypes.CDLL(str(library)).dartsfast_instruction_set
    kernels.restype = ctypes.c_void_p
    extension = ctypes.CDLL(str(native.LIBRARY))
    extension.dartsfast_add_instruction_set.argtypes = [ctypes.c_void_p]
    extension.dartsfast_add_instruction_set.restype = None
    extension.dartsfast_add_instruction_set(kernels())
