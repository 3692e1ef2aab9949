"""Instruction sets for tests, compiled by themselves and given to the loaded extension.

What a processor lacks runs all the same: ``avx512-emulated`` is the kernels of AVX-512 with SIMDe in the
place of the instructions (Debian's ``libsimde-dev``), ``portable-wide`` the portable kernels in AVX-512's
shape.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from dartsfast.backends import native
from dartsfast.backends.instruction_set import names

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
EMULATED, PORTABLE_WIDE = "avx512-emulated", "portable-wide"
EMULATED_CUDA = "cuda-emulated"
"""What a library of CUDA kernels under the emulator calls itself; nothing else is in it."""
ALL = (
    (EMULATED_CUDA,)
    if native.load() is None and names() == [EMULATED_CUDA]
    else ("avx512", "avx2", "portable", PORTABLE_WIDE)
)
RAN = "instruction set"
"""Name of the property that a test has of the instruction set on which it ran."""

SOURCES = {EMULATED: "avx512.cpp", PORTABLE_WIDE: "wide.cpp"}
FLAGS = ("-std=c++20", "-shared", "-fPIC", "-g0", "-w", "-ffp-contract=off")
# Without -fno-tree-sra g++ 12 fails on SIMDe's types.
OPTIMISED = {EMULATED: ("-O1", "-fno-tree-sra"), PORTABLE_WIDE: ("-O1",)}


class UnavailableError(Exception):
    """An instruction set cannot be run here in any way; the reason."""


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
    if shutil.which(COMPILER) is None:
        raise UnavailableError(f"no compiler {COMPILER}")
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # what SIMDe is fast and fused with
        flags += ("-mavx2", "-mfma")
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in sorted([*csrc.rglob("*.[hi]*"), *source.parent.glob("*.[hc]*")]):
        digest.update(path.read_bytes())
    library = to / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        to.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        includes = f"-I{csrc / 'cpu'}", f"-I{source.parent}"
        subprocess.run([COMPILER, *FLAGS, *flags, *includes, str(source), "-o", str(partial)], check=True)
        os.replace(partial, library)
    return library


def add(library: Path) -> None:
    """Give the instruction set of a library to the extension."""
    kernels = ctypes.CDLL(str(library)).dartsfast_instruction_set
    kernels.restype = ctypes.c_void_p
    extension = ctypes.CDLL(str(native.LIBRARY))
    extension.dartsfast_add_instruction_set.argtypes = [ctypes.c_void_p]
    extension.dartsfast_add_instruction_set.restype = None
    extension.dartsfast_add_instruction_set(kernels())
